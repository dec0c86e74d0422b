// What every page does: a theme to choose, pictures that open large, and paper that shows all.
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const tell = (name) => document.dispatchEvent(new Event(name));
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const button = document.querySelector("[data-act=theme]");
  const label = () => { if (button) button.setAttribute("aria-pressed", String(isDark())); };
  label();
  if (button) {
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      label();
      tell("fsdtrain:theme");
    });
  }
  dark.addEventListener("change", () => { label(); tell("fsdtrain:theme"); });

  const viewer = document.getElementById("viewer");
  document.querySelectorAll("button.picture").forEach((picture) => {
    picture.addEventListener("click", () => {
      viewer.replaceChildren(picture.querySelector("img").cloneNode());
      viewer.showModal();
    });
  });
  if (viewer) viewer.addEventListener("click", () => viewer.close());

  // Paper is white, holds every chart, and nothing that is folded away.
  let opened = [];
  let theme;
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open]):not(.why)")];
    opened.forEach((element) => { element.open = true; });
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    tell("fsdtrain:theme");
    tell("fsdtrain:print");
  });
  window.addEventListener("afterprint", () => {
    opened.forEach((element) => { element.open = false; });
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    tell("fsdtrain:theme");
  });
})();
