// Tables that sort, filter and turn pages. Only the rows of one page are elements; all text is set
// as text. Keyboard: headings, choices and pages are buttons.
(() => {
  "use strict";
  const COLLATOR = new Intl.Collator("en", { numeric: true });
  const SPARK = { width: 72, height: 18 };

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function sparkline(points) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("class", "spark");
    svg.setAttribute("viewBox", `0 0 ${SPARK.width} ${SPARK.height}`);
    svg.setAttribute("aria-hidden", "true");
    let path = "";
    let isDown = false;
    points.forEach((value, index) => {
      if (value === null) { isDown = false; return; }
      const x = 1 + (index / Math.max(points.length - 1, 1)) * (SPARK.width - 2);
      const y = SPARK.height - 1 - value * (SPARK.height - 2);
      path += `${isDown ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      isDown = true;
    });
    const line = document.createElementNS(space, "path");
    line.setAttribute("d", path);
    svg.append(line);
    return svg;
  }

  class Table {
    constructor(root) {
      this.root = root;
      this.data = JSON.parse(root.querySelector("script").textContent);
      this.body = root.querySelector("tbody");
      this.heads = [...root.querySelectorAll("thead th")];
      this.live = root.querySelector(".count");
      this.order = Array.from({ length: this.data.rows }, (_, row) => row);
      this.chosen = this.data.columns.map(() => new Set());
      this.warned = this.data.columns.map((column) => new Set(column.warned || []));
      this.sorted = null;
      this.page = 0;
      this.query = "";
      this.listen();
      this.select();
    }

    listen() {
      this.heads.forEach((head, number) => {
        head.querySelector("button").addEventListener("click", () => this.sort(number));
      });
      const filter = this.root.querySelector("input[type=search]");
      if (filter) {
        filter.addEventListener("input", () => {
          this.query = filter.value.trim().toLowerCase();
          this.select();
        });
      }
      const chips = this.root.querySelector(".choices");
      this.data.columns.forEach((column, number) => {
        column.choices.forEach((value) => {
          const button = make("button", "tool", this.data.strings[value] || "none");
          button.type = "button";
          button.setAttribute("aria-pressed", "false");
          button.addEventListener("click", () => {
            const chosen = this.chosen[number];
            if (!chosen.delete(value)) chosen.add(value);
            button.setAttribute("aria-pressed", String(chosen.has(value)));
            this.select();
          });
          chips.append(button);
        });
      });
      const turn = (by) => () => { this.page += by; this.show(); };
      [this.back, this.next] = this.root.querySelectorAll(".pages button");
      this.back.addEventListener("click", turn(-1));
      this.next.addEventListener("click", turn(1));
    }

    // All that a row says, in small letters; made when the filter is first used.
    words() {
      this.cache ||= Array.from({ length: this.data.rows }, (_, row) =>
        this.data.columns.flatMap((column) => [column.text[row], ...((column.small || [])[row] || [])])
          .map((text) => this.data.strings[text]).join("\n").toLowerCase());
      return this.cache;
    }

    select() {
      const words = this.query ? this.words() : null;
      this.shown = this.order.filter((row) =>
        (!words || words[row].includes(this.query)) &&
        this.data.columns.every((column, number) =>
          !this.chosen[number].size || this.chosen[number].has(column.text[row])));
      this.page = 0;
      this.show();
    }

    sort(number) {
      const column = this.data.columns[number];
      const head = this.heads[number];
      const before = head.getAttribute("aria-sort");
      const isUp = before ? before === "descending" : !column.isNumber;
      this.heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const sign = isUp ? 1 : -1;
      if (column.isNumber) {
        const values = column.value;
        // What has no value comes last, whichever way.
        this.order.sort((a, b) => {
          if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null);
          return sign * (values[a] - values[b]);
        });
      } else {
        column.rank ||= this.ranks(column);
        this.order.sort((a, b) => sign * (column.rank[column.text[a]] - column.rank[column.text[b]]));
      }
      this.select();
    }

    // Every text is compared once, not at every step of the sort.
    ranks(column) {
      const texts = [...new Set(column.text)];
      texts.sort((a, b) => COLLATOR.compare(this.data.strings[a], this.data.strings[b]));
      const rank = {};
      texts.forEach((text, place) => { rank[text] = place; });
      return rank;
    }

    show() {
      const size = this.data.page;
      const pages = Math.max(1, Math.ceil(this.shown.length / size));
      this.page = Math.min(Math.max(this.page, 0), pages - 1);
      const rows = this.shown.slice(this.page * size, (this.page + 1) * size);
      this.body.replaceChildren(...rows.map((row) => this.row(row)));
      this.back.disabled = this.page === 0;
      this.next.disabled = this.page === pages - 1;
      this.root.querySelector(".pages").hidden = pages === 1;
      const count = this.shown.length.toLocaleString("en");
      const all = this.data.rows.toLocaleString("en");
      const few = this.shown.length === this.data.rows ? `${all} rows` : `${count} of ${all} rows`;
      this.live.textContent = pages > 1 ? `${few}, page ${this.page + 1} of ${pages}` : few;
    }

    row(row) {
      const line = make("tr");
      this.data.columns.forEach((column, number) => {
        const cell = make(number ? "td" : "th");
        if (!number) cell.scope = "row";
        if (column.isNumber) cell.classList.add("num");
        if (this.warned[number].has(row)) cell.classList.add("warned");
        const strings = this.data.strings;
        if (column.tone && strings[column.tone[row]]) {
          cell.append(make("i", `chip ${strings[column.tone[row]]}`));
        }
        const text = strings[column.text[row]];
        cell.append(column.isCode ? make("span", "mono", text) : text);
        for (const small of (column.small || [])[row] || []) cell.append(make("small", "", strings[small]));
        if (column.spark && column.spark[row].length > 1) cell.append(sparkline(column.spark[row]));
        const details = (column.details || [])[row] || [];
        if (details.length) {
          const more = make("details", "why");
          const list = make("ul");
          list.append(...details.map((reason) => make("li", "", strings[reason])));
          more.append(make("summary", "", this.data.more), list);
          cell.append(more);
        }
        line.append(cell);
      });
      return line;
    }
  }

  document.querySelectorAll(".sortable").forEach((root) => new Table(root));
})();
