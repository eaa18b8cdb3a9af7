// Loaded before the first paint, so that a dark page never flashes white.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const choice = () => {
    try {
      return localStorage.getItem("theme") || "auto";
    } catch {
      return "auto"; // storage can be switched off
    }
  };
  const apply = () => {
    const chosen = choice();
    const dark = chosen === "dark" || (chosen === "auto" && system.matches);
    document.documentElement.dataset.bsTheme = dark ? "dark" : "light";
    document.documentElement.dataset.themeChoice = chosen;
    // What the page of the JSON calls goes by, whose style sheet is not ours.
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
