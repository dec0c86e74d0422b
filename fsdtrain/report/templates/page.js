// What every page of the report does: pictures open large, and a printed page shows everything.
(() => {
  "use strict";
  const viewer = document.getElementById("viewer");
  document.querySelectorAll("button.picture").forEach((button) => {
    button.addEventListener("click", () => {
      const image = button.querySelector("img").cloneNode();
      viewer.replaceChildren(image);
      viewer.showModal();
    });
  });
  if (viewer) viewer.addEventListener("click", () => viewer.close());
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((element) => { element.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((element) => { element.open = false; }));
})();
