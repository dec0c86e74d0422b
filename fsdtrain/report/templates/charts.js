// Line charts of the report: one per <figure class="chart">, drawn as SVG from the JSON beside it.
// The step axis is shared: the cursor and the zoom of one chart are those of all.
(() => {
  "use strict";

  const MARGIN = { top: 10, right: 14, bottom: 26, left: 54 };
  const MARKERS_UP_TO = 40; // points; more of them would hide the line
  const DRAG_PX = 6;

  const shared = { charts: [], zoom: null, smooth: true };

  function nearest(steps, step) {
    let low = 0;
    let high = steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle;
      else high = middle;
    }
    return Math.abs(steps[high] - step) < Math.abs(steps[low] - step) ? high : low;
  }

  function niceTicks(low, high, count) {
    const raw = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(raw));
    const unit = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
    const ticks = [];
    for (let n = Math.ceil(low / unit - 1e-9); n * unit <= high + unit * 1e-9; n += 1) {
      ticks.push(Number((n * unit).toPrecision(12)));
    }
    return ticks;
  }

  function logTicks(low, high) {
    const decades = high - low;
    const factors = decades < 0.7 ? [1, 1.5, 2, 3, 4, 5, 7] : decades < 3 ? [1, 2, 5] : [1];
    const stride = Math.max(1, Math.ceil(decades / 6));
    const ticks = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
      if (power % stride) continue;
      for (const factor of factors) {
        const value = Math.log10(factor) + power;
        if (value >= low && value <= high) ticks.push(Number((factor * 10 ** power).toPrecision(6)));
      }
    }
    return ticks;
  }

  function short(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
    return String(Number(value.toPrecision(4)));
  }

  class Chart {
    constructor(figure, panel) {
      this.figure = figure;
      this.panel = panel;
      this.plot = figure.querySelector(".plot");
      this.svg = figure.querySelector("svg");
      this.tip = figure.querySelector(".tip");
      this.isLog = false;
      this.hidden = new Set();
      this.cursor = null;
      this.steps = [...new Set(panel.series.flatMap((series) => series.steps))].sort((a, b) => a - b);
      this.listen();
    }

    listen() {
      const log = this.figure.querySelector("[data-act=log]");
      const isPositive = this.panel.series.some((one) => one.values.some((v) => v !== null && v > 0));
      if (log) {
        log.disabled = !isPositive;
        log.addEventListener("click", () => {
          this.isLog = !this.isLog;
          log.setAttribute("aria-pressed", String(this.isLog));
          this.draw();
        });
      }
      this.figure.querySelectorAll("[data-series]").forEach((button) => {
        button.addEventListener("click", () => {
          const index = Number(button.dataset.series);
          if (!this.hidden.delete(index)) this.hidden.add(index);
          button.setAttribute("aria-pressed", String(!this.hidden.has(index)));
          this.draw();
        });
      });
      let start = null;
      this.plot.addEventListener("pointerdown", (event) => {
        if (event.button === 0) start = this.pixel(event);
      });
      this.plot.addEventListener("pointermove", (event) => {
        const x = this.pixel(event);
        if (start !== null && event.buttons === 1 && Math.abs(x - start) > DRAG_PX) this.select(start, x);
        pointAll(this.stepAt(x), this);
      });
      this.plot.addEventListener("pointerup", (event) => {
        const x = this.pixel(event);
        if (start !== null && Math.abs(x - start) > DRAG_PX) {
          zoomAll([this.unscale(Math.min(start, x)), this.unscale(Math.max(start, x))]);
        }
        start = null;
      });
      this.plot.addEventListener("pointerleave", () => {
        start = null;
        pointAll(null, null);
        this.draw();
      });
      this.plot.addEventListener("dblclick", () => zoomAll(null));
      this.plot.addEventListener("blur", () => pointAll(null, null));
      this.plot.addEventListener("keydown", (event) => this.key(event));
    }

    key(event) {
      if (event.key === "Escape") {
        pointAll(null, null);
        zoomAll(null);
        return;
      }
      const visible = this.steps.filter((step) => step >= this.x0 && step <= this.x1);
      if (!visible.length) return;
      const here = this.cursor === null ? -1 : nearest(visible, this.cursor);
      const stride = event.shiftKey ? Math.max(1, Math.round(visible.length / 20)) : 1;
      const to = {
        ArrowRight: here + stride,
        ArrowLeft: here < 0 ? visible.length - 1 : here - stride,
        Home: 0,
        End: visible.length - 1,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      pointAll(visible[Math.min(Math.max(to, 0), visible.length - 1)], this);
    }

    pixel(event) {
      return event.clientX - this.plot.getBoundingClientRect().left;
    }

    unscale(x) {
      const fraction = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
      return this.x0 + Math.min(Math.max(fraction, 0), 1) * (this.x1 - this.x0);
    }

    stepAt(x) {
      return this.steps[nearest(this.steps, this.unscale(x))];
    }

    shown() {
      return this.panel.series.filter((_, index) => !this.hidden.has(index));
    }

    yOf(value) {
      return this.isLog ? Math.log10(value) : value;
    }

    usable(value) {
      return value !== null && value !== undefined && (!this.isLog || value > 0);
    }

    fit() {
      this.width = Math.max(this.plot.clientWidth, 220);
      this.height = this.plot.clientHeight;
      [this.x0, this.x1] = shared.zoom || shared.range;
      if (this.x1 <= this.x0) this.x1 = this.x0 + 1;
      let low = Infinity;
      let high = -Infinity;
      for (const series of this.shown()) {
        series.values.forEach((value, index) => {
          const step = series.steps[index];
          const isIn = (step >= this.x0 && step <= this.x1) || this.isLevel(series);
          if (!isIn || !this.usable(value)) return;
          low = Math.min(low, this.yOf(value));
          high = Math.max(high, this.yOf(value));
        });
      }
      this.isEmpty = low > high;
      const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      // Quantities that cannot be negative keep their zero rather than a margin below it.
      this.y0 = !this.isLog && low >= 0 && low - pad < 0 ? 0 : low - pad;
      this.y1 = high + pad;
      this.sx = (step) =>
        MARGIN.left + ((step - this.x0) / (this.x1 - this.x0)) * (this.width - MARGIN.left - MARGIN.right);
      this.sy = (value) =>
        this.height - MARGIN.bottom -
        ((this.yOf(value) - this.y0) / (this.y1 - this.y0)) * (this.height - MARGIN.top - MARGIN.bottom);
    }

    // A baseline that was evaluated once holds for the whole run.
    isLevel(series) {
      return series.role === "baseline" && series.values.length === 1;
    }

    add(parent, name, attributes, text) {
      const element = document.createElementNS(this.svg.namespaceURI, name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text !== undefined) element.textContent = text;
      parent.append(element);
      return element;
    }

    draw() {
      this.fit();
      this.svg.replaceChildren();
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      if (this.isEmpty) {
        const at = { x: this.width / 2, y: this.height / 2, class: "tick", "text-anchor": "middle" };
        this.add(this.svg, "text", at, "no value to show");
        this.overlay = null;
        return;
      }
      this.drawAxes();
      const clip = this.add(this.svg, "clipPath", { id: `clip-${shared.charts.indexOf(this)}` });
      const inner = { x: MARGIN.left - 4, y: 0, width: this.width - MARGIN.left - MARGIN.right + 9 };
      this.add(clip, "rect", { ...inner, height: this.height - MARGIN.bottom + 4 });
      const lines = this.add(this.svg, "g", { "clip-path": `url(#${clip.id})` });
      this.panel.series.forEach((series, index) => {
        if (!this.hidden.has(index)) this.drawSeries(lines, series, index);
      });
      this.overlay = this.add(this.svg, "g", {});
      this.point();
    }

    drawAxes() {
      const bottom = this.height - MARGIN.bottom;
      const right = this.width - MARGIN.right;
      const rows = Math.max(3, Math.round(this.height / 44));
      const ticks = this.isLog ? logTicks(this.y0, this.y1) : niceTicks(this.y0, this.y1, rows);
      for (const value of ticks) {
        const y = this.sy(value);
        this.add(this.svg, "line", { x1: MARGIN.left, x2: right, y1: y, y2: y, class: "grid" });
        const at = { x: MARGIN.left - 8, y: y + 4, class: "tick", "text-anchor": "end" };
        this.add(this.svg, "text", at, short(value));
      }
      const columns = Math.max(2, Math.round(this.width / 110));
      for (const step of niceTicks(this.x0, this.x1, columns).filter(Number.isInteger)) {
        const x = this.sx(step);
        this.add(this.svg, "line", { x1: x, x2: x, y1: bottom, y2: bottom + 4, class: "axis" });
        const anchor = x > right - 18 ? "end" : "middle";
        this.add(this.svg, "text", { x, y: bottom + 18, class: "tick", "text-anchor": anchor }, short(step));
      }
      this.add(this.svg, "line", { x1: MARGIN.left, x2: right, y1: bottom, y2: bottom, class: "axis" });
    }

    pathOf(series, values) {
      let path = "";
      let isDown = false;
      values.forEach((value, index) => {
        if (!this.usable(value)) {
          isDown = false;
          return;
        }
        const x = this.sx(series.steps[index]).toFixed(1);
        path += `${isDown ? "L" : "M"}${x} ${this.sy(value).toFixed(1)}`;
        isDown = true;
      });
      return path;
    }

    drawSeries(parent, series, index) {
      const style = `line ${series.role} s${index % 6}`;
      if (this.isLevel(series)) {
        if (!this.usable(series.values[0])) return;
        const y = this.sy(series.values[0]);
        this.add(parent, "line", { x1: 0, x2: this.width, y1: y, y2: y, class: style });
        return;
      }
      const isSmooth = shared.smooth && series.smooth;
      if (isSmooth) this.add(parent, "path", { d: this.pathOf(series, series.values), class: `${style} raw` });
      const values = isSmooth ? series.smooth : series.values;
      this.add(parent, "path", { d: this.pathOf(series, values), class: style });
      if (series.values.length > MARKERS_UP_TO || series.role === "baseline") return;
      values.forEach((value, at) => {
        if (!this.usable(value)) return;
        const where = { cx: this.sx(series.steps[at]), cy: this.sy(value), r: 2.6 };
        this.add(parent, "circle", { ...where, class: `dot ${series.role} s${index % 6}` });
      });
    }

    select(from, to) {
      if (!this.overlay) return;
      this.selection = { x: Math.min(from, to), width: Math.abs(to - from) };
    }

    // The cursor line and a dot on every series; the chart under the pointer shows the figures too.
    point() {
      if (!this.overlay) return;
      this.overlay.replaceChildren();
      this.tip.hidden = true;
      if (this.selection) {
        const rows = { y: MARGIN.top, height: this.height - MARGIN.top - MARGIN.bottom };
        this.add(this.overlay, "rect", { ...this.selection, ...rows, class: "selection" });
        this.selection = null;
      }
      if (this.cursor === null || this.cursor < this.x0 || this.cursor > this.x1) return;
      const x = this.sx(this.cursor);
      const ends = { y1: MARGIN.top, y2: this.height - MARGIN.bottom };
      this.add(this.overlay, "line", { x1: x, x2: x, ...ends, class: "cursor" });
      const rows = [];
      this.panel.series.forEach((series, index) => {
        if (this.hidden.has(index)) return;
        const at = nearest(series.steps, this.cursor);
        const raw = series.values[at];
        const value = shared.smooth && series.smooth ? series.smooth[at] : raw;
        rows.push({ series, index, raw, step: series.steps[at] });
        if (!this.usable(value)) return;
        const dotX = this.isLevel(series) ? x : this.sx(series.steps[at]);
        const where = { cx: dotX, cy: this.sy(value), r: 4 };
        this.add(this.overlay, "circle", { ...where, class: `dot ${series.role} s${index % 6}` });
      });
      if (this.isSource) this.showTip(x, rows.reverse());
    }

    showTip(x, rows) {
      const head = document.createElement("b");
      head.textContent = `step ${this.cursor.toLocaleString("en")}`;
      const items = rows.map(({ series, index, raw, step }) => {
        const row = document.createElement("div");
        const swatch = document.createElement("i");
        swatch.className = `swatch ${series.role} s${index % 6}`;
        const name = document.createElement("span");
        const isElsewhere = step !== this.cursor && !this.isLevel(series);
        name.textContent = series.label + (isElsewhere ? ` @ ${step.toLocaleString("en")}` : "");
        const value = document.createElement("output");
        value.textContent = raw === null ? "not finite" : short(raw);
        row.append(swatch, name, value);
        return row;
      });
      this.tip.replaceChildren(head, ...items);
      this.tip.hidden = false;
      const isLeft = x > this.width / 2;
      this.tip.style.left = isLeft ? "" : `${x + 14}px`;
      this.tip.style.right = isLeft ? `${this.plot.clientWidth - x + 14}px` : "";
    }
  }

  function pointAll(step, source) {
    for (const chart of shared.charts) {
      chart.cursor = step;
      chart.isSource = chart === source;
      chart.point();
    }
  }

  function zoomAll(range) {
    shared.zoom = range;
    document.querySelectorAll("[data-act=reset]").forEach((button) => {
      button.disabled = range === null;
    });
    shared.charts.forEach((chart) => chart.draw());
  }

  const data = document.getElementById("panels");
  if (!data) return;
  const panels = JSON.parse(data.textContent);
  shared.charts = [...document.querySelectorAll("figure.chart")].map(
    (figure) => new Chart(figure, panels[Number(figure.dataset.panel)]),
  );
  const ends = panels.flatMap((panel) => panel.series.flatMap((one) => [one.steps[0], one.steps.at(-1)]));
  shared.range = [Math.min(...ends), Math.max(...ends)];
  document.querySelectorAll("[data-act=reset]").forEach((button) => {
    button.addEventListener("click", () => zoomAll(null));
  });
  document.querySelectorAll("[data-act=smooth]").forEach((button) => {
    button.addEventListener("click", () => {
      shared.smooth = !shared.smooth;
      button.setAttribute("aria-pressed", String(shared.smooth));
      shared.charts.forEach((chart) => chart.draw());
    });
  });
  const watcher = new ResizeObserver((entries) => {
    for (const entry of entries) shared.charts.find((chart) => chart.plot === entry.target).draw();
  });
  shared.charts.forEach((chart) => watcher.observe(chart.plot));
})();
