// The tree of modules: a branch's rows are made when it is opened. Keyboard: summaries are buttons.
(() => {
  "use strict";

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function line(node) {
    const [name, count, outside, sides] = node;
    const row = make("span", "node");
    const title = make("span", "name");
    title.append(make("span", "mono", name), make("small", "", ` ${count.toLocaleString("en")} tensors`));
    if (outside) title.append(make("b", "warned", ` \u2717 ${outside.toLocaleString("en")} outside`));
    row.append(title);
    for (const side of ["a", "b"]) {
      const [step, text, what] = sides[side] || [0, "not measured", ""];
      const cell = make("span", "snr", "");
      cell.title = what;
      cell.append(make("i", `h${step}`), make("span", "unseen", `${side} `), text);
      row.append(cell);
    }
    return row;
  }

  function branch(node, isOpen) {
    const children = node[4];
    if (!children.length) {
      const leaf = make("div", "leaf");
      leaf.append(line(node));
      return leaf;
    }
    const details = make("details", "branch");
    const summary = make("summary");
    summary.append(line(node));
    details.append(summary);
    const fill = () => {
      if (details.open && details.childElementCount === 1) {
        const below = make("div", "below");
        below.append(...children.map((child) => branch(child, false)));
        details.append(below);
      }
    };
    details.addEventListener("toggle", fill);
    details.open = isOpen;
    fill();
    return details;
  }

  document.querySelectorAll("[data-tree]").forEach((root) => {
    const tree = JSON.parse(root.querySelector("script").textContent);
    root.querySelector(".branches").append(...tree.map((node) => branch(node, true)));
  });
})();
