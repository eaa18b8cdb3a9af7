// Loaded before the first paint, so that dark pages do not flash white.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const choice = () => {
    try {
      return localStorage.getItem("theme") || "auto";
    } catch {
      return "auto"; // storage can be disabled
    }
  };
  const apply = () => {
    const chosen = choice();
    const dark = chosen === "dark" || (chosen === "auto" && system.matches);
    document.documentElement.dataset.bsTheme = dark ? "dark" : "light";
    document.documentElement.dataset.themeChoice = chosen;
    // For the style sheet of Swagger UI on the API documentation page.
    document.documentElement.classList.toggle("dark-mode", dark);
    document.dispatchEvent(new Event("onecode:theme"));
  };
  apply();
  system.addEventListener("change", apply);
  addEventListener("storage", apply); // another tab changed it
  document.addEventListener("onecode:choose-theme", (event) => {
    try {
      localStorage.setItem("theme", event.detail);
    } catch {
      return;
    }
    apply();
  });
})();
