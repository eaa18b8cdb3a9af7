// Forms with passwords and time zones. Without this file they work just as well, with a little more typing.
(() => {
  "use strict";

  // One switch per form shows what is typed into its password fields.
  for (const form of document.forms) {
    const fields = [...form.querySelectorAll("input[type=password]")];
    if (!fields.length) continue;
    const box = Object.assign(document.createElement("input"), { type: "checkbox", className: "form-check-input" });
    const label = Object.assign(document.createElement("label"), { className: "form-check mt-2" });
    const words = Object.assign(document.createElement("span"), { className: "form-check-label" });
    words.textContent = fields.length > 1 ? "Show the passwords" : "Show the password";
    label.append(box, words);
    fields.at(-1).closest(".field").append(label);
    const show = (yes) => fields.forEach((field) => (field.type = yes ? "text" : "password"));
    box.addEventListener("change", () => show(box.checked));
    // A browser remembers what stands in text fields.
    form.addEventListener("submit", () => {
      box.checked = false;
      show(false);
    });
  }

  // Newcomers most likely live by the clock of their browser.
  for (const select of document.querySelectorAll("select[data-guess-zone]")) {
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    if ([...select.options].some((option) => option.value === zone)) select.value = zone;
  }
})();
