// Enhancements of pages about accounts, which also work without this file.
(() => {
  "use strict";

  const texts = JSON.parse(document.body.dataset.texts);

  // One checkbox per form shows the contents of its password fields.
  for (const form of document.forms) {
    const fields = [...form.querySelectorAll("input[type=password]")];
    if (!fields.length) continue;
    const box = Object.assign(document.createElement("input"), { type: "checkbox", className: "form-check-input" });
    const label = Object.assign(document.createElement("label"), { className: "form-check mt-2" });
    const caption = Object.assign(document.createElement("span"), { className: "form-check-label" });
    caption.textContent = fields.length > 1 ? texts.showPasswords : texts.showPassword;
    label.append(box, caption);
    fields.at(-1).closest(".field").append(label);
    const show = (isShown) => fields.forEach((field) => (field.type = isShown ? "text" : "password"));
    box.addEventListener("change", () => show(box.checked));
    // Browsers store the contents of text fields for autocompletion.
    form.addEventListener("submit", () => {
      box.checked = false;
      show(false);
    });
  }

  for (const button of document.querySelectorAll("[data-print]")) {
    button.hidden = false;
    button.addEventListener("click", () => print());
  }

  // The time zone of the browser is most likely that of a new user.
  for (const select of document.querySelectorAll("select[data-guess-zone]")) {
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    if ([...select.options].some((option) => option.value === zone)) select.value = zone;
  }
})();
