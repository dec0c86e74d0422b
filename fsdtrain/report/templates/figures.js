// Charts: drawn by plotly when they come into view, in the colours of the theme, and read with the
// arrow keys. What a chart holds is JSON beside it; "@name" and "@name/0.2" are colours of the page.
(() => {
  "use strict";
  const NAMED = /^@([a-z0-9-]+)(?:\/([\d.]+))?$/;
  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: false, showTips: false };
  const isTouch = window.matchMedia("(pointer: coarse)").matches;

  function colorOf(text) {
    const found = NAMED.exec(text);
    const value = found && getComputedStyle(document.documentElement).getPropertyValue(`--${found[1]}`).trim();
    if (!value) return text;
    if (!found[2]) return value;
    const part = (at) => parseInt(value.slice(at, at + 2), 16);
    return `rgba(${part(1)},${part(3)},${part(5)},${found[2]})`;
  }

  // A copy with colours in place of their names, where plotly expects a color and nowhere else.
  function themed(node, isColor) {
    if (typeof node === "string") return isColor ? colorOf(node) : node;
    if (Array.isArray(node)) {
      if (!isColor && typeof node[0] !== "object") return node;
      return node.map((one) => themed(one, isColor));
    }
    if (node === null || typeof node !== "object") return node;
    const copy = {};
    for (const [key, value] of Object.entries(node)) copy[key] = themed(value, isColor || /color/i.test(key));
    return copy;
  }

  // Read when the first chart is to be drawn; the policy of the page knows this text by its hash.
  function loadPlotly() {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  }

  class Figure {
    constructor(root) {
      this.root = root;
      this.plot = root.querySelector(".plot");
      this.live = root.querySelector(".reading");
      this.isDrawn = false;
      this.isStale = true;
      this.isVisible = false;
      this.hidden = new Set();
      this.isLog = false;
      this.isSmooth = true;
      this.at = null;
      this.listen();
    }

    get spec() {
      this.parsed ||= JSON.parse(this.root.querySelector("script").textContent);
      return this.parsed;
    }

    listen() {
      this.root.querySelectorAll("[data-traces]").forEach((button) => {
        button.addEventListener("click", () => {
          const traces = button.dataset.traces.split(" ").map(Number);
          const isOn = button.getAttribute("aria-pressed") !== "true";
          traces.forEach((trace) => { if (isOn) this.hidden.delete(trace); else this.hidden.add(trace); });
          button.setAttribute("aria-pressed", String(isOn));
          this.refresh();
        });
      });
      const log = this.root.querySelector("[data-act=log]");
      if (log) {
        log.addEventListener("click", () => {
          this.isLog = !this.isLog;
          log.setAttribute("aria-pressed", String(this.isLog));
          this.refresh();
        });
      }
      this.plot.addEventListener("keydown", (event) => this.key(event));
      this.plot.addEventListener("dblclick", () => zoomAll(this, null));
      this.plot.addEventListener("blur", () => { if (this.isDrawn) Plotly.Fx.unhover(this.plot); });
    }

    // What plotly gets: the figure in the theme's colours and as the buttons have it.
    figure() {
      const { data, layout } = themed({ data: this.spec.data, layout: this.spec.layout }, false);
      data.forEach((trace, number) => {
        const kind = trace.meta;
        if (kind === "smooth") trace.visible = this.isSmooth;
        if (kind === "raw" && !this.isSmooth) { trace.opacity = 1; trace.hoverinfo = "all"; }
        if (kind === "raw" && this.isSmooth) trace.hoverinfo = "skip";
        if (this.hidden.has(number)) trace.visible = false;
      });
      if (this.isLog) layout.yaxis = { ...layout.yaxis, type: "log", rangemode: "normal", exponentformat: "power", dtick: undefined };
      const zoom = links.get(this.root.dataset.link || this);
      if (zoom) layout.xaxis = { ...layout.xaxis, range: zoom, autorange: false };
      if (maps && this.spec.maps) maps.fill(this.spec.maps, data);
      if (isTouch) layout.dragmode = false;
      layout.width = this.plot.clientWidth;
      layout.height = this.plot.clientHeight;
      return [data, layout];
    }

    draw() {
      loadPlotly();
      this.isStale = false;
      const [data, layout] = this.figure();
      if (this.isDrawn) {
        Plotly.react(this.plot, data, layout, CONFIG);
        return;
      }
      this.isDrawn = true;
      Plotly.newPlot(this.plot, data, layout, CONFIG);
      this.plot.on("plotly_relayout", (change) => {
        if (change["xaxis.range[0]"] !== undefined) zoomAll(this, [change["xaxis.range[0]"], change["xaxis.range[1]"]]);
      });
      this.plot.on("plotly_hover", (event) => {
        const { curveNumber, pointNumber } = event.points[0];
        this.at = Array.isArray(pointNumber) ? pointNumber : [curveNumber, pointNumber];
      });
    }

    // Draw now if it can be seen, else when it is.
    refresh() {
      this.isStale = true;
      if (this.isVisible) this.draw();
    }

    key(event) {
      if (event.key === "Escape") { zoomAll(this, null); return; }
      const by = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 }[event.key];
      const over = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const end = { Home: 0, End: Infinity }[event.key];
      if (by === undefined && over === undefined && end === undefined) return;
      event.preventDefault();
      const traces = this.plot.data || [];
      if (traces.length && traces[0].type === "heatmap") {
        this.keyMap(traces[0], by === undefined ? (end === undefined ? 0 : end - this.column()) : by, over || 0);
        return;
      }
      const usable = traces.map((_, number) => number).filter((number) =>
        traces[number].visible !== false && traces[number].hoverinfo !== "skip" && sizeOf(traces[number]));
      if (!usable.length) return;
      let [trace, point] = this.at || [usable[0], by > 0 ? -1 : 0];
      if (!usable.includes(trace)) trace = usable[0];
      if (over) trace = usable[(usable.indexOf(trace) + over + usable.length) % usable.length];
      const last = sizeOf(traces[trace]) - 1;
      point = Math.min(Math.max(end === undefined ? point + (by || 0) : end, 0), last);
      this.at = [trace, point];
      Plotly.Fx.hover(this.plot, [{ curveNumber: trace, pointNumber: point }]);
      this.say(traces[trace], point);
    }

    column() {
      return this.at ? this.at[1] : 0;
    }

    // From place to place of a map: right and left, up and down.
    keyMap(trace, right, down) {
      const [row, column] = this.at ? [this.at[0] + down, this.at[1] + right] : [0, 0];
      const rows = trace.z.length;
      const columns = trace.z[0].length;
      this.at = [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
      const value = trace.z[this.at[0]][this.at[1]];
      const x = trace.x0 + this.at[1] * trace.dx;
      const y = trace.y0 + this.at[0] * trace.dy;
      Plotly.Fx.hover(this.plot, { xval: x, yval: y });
      const amount = value === null ? "nothing is here" : maps.amount(this.spec.maps, value);
      this.live.textContent = `row ${y}, column ${x}: ${amount}`;
    }

    // What is under the cursor, for a screen reader.
    say(trace, point) {
      const read = (of) => (Array.isArray(of) ? of[point] : undefined);
      const custom = read(trace.customdata);
      const shown = read(trace.text) || (typeof custom === "string" ? custom : "");
      const isFlat = trace.orientation === "h";
      const where = read(isFlat ? trace.y : trace.x);
      const value = read(isFlat ? trace.x : trace.y);
      const short = (one) => (typeof one === "number" ? Number(one.toPrecision(4)) : one);
      const words = `${trace.name || ""} ${short(where)}: ${shown || short(value)}`.replace(/<[^>]*>/g, " ");
      this.live.textContent = words.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&").trim();
    }
  }

  function sizeOf(trace) {
    const values = trace.orientation === "h" ? trace.x : trace.y;
    return trace.type === "heatmap" || !values ? 0 : values.length;
  }

  const links = new Map();
  function zoomAll(source, range) {
    const name = source.root.dataset.link;
    links.set(name || source, range);
    document.querySelectorAll("[data-act=reset]").forEach((button) => { button.disabled = range === null; });
    for (const figure of figures) if (figure === source || (name && figure.root.dataset.link === name)) figure.refresh();
  }

  const maps = window.fsdtrainMaps;
  const figures = [...document.querySelectorAll("figure[data-chart]")].map((root) => new Figure(root));
  const byRoot = new Map(figures.map((figure) => [figure.root, figure]));
  if (maps) maps.listen(() => figures.forEach((figure) => { if (figure.spec.maps) figure.refresh(); }));
  // Paper has a width of its own: the drawing is scaled to it.
  const drawAll = () => figures.forEach((figure) => {
    if (figure.isStale) figure.draw();
    figure.plot.style.setProperty("--ratio", `${figure.plot.clientWidth} / ${figure.plot.clientHeight}`);
    figure.plot.querySelectorAll(".main-svg").forEach((svg) => {
      svg.setAttribute("viewBox", `0 0 ${figure.plot.clientWidth} ${figure.plot.clientHeight}`);
    });
  });

  const afterPaint = (then) => requestAnimationFrame(() => setTimeout(then, 0));
  // A few at a time: the page answers between two of them.
  const waiting = [];
  function drawNext() {
    const figure = waiting.shift();
    if (figure && figure.isVisible && figure.isStale) figure.draw();
    if (waiting.length) setTimeout(drawNext, 0);
  }
  function drawSoon(figure) {
    if (figure.isVisible && figure.isStale && waiting.push(figure) === 1) afterPaint(drawNext);
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const figure = byRoot.get(entry.target);
      figure.isVisible = entry.isIntersecting;
      drawSoon(figure);
    }
  }, { rootMargin: "250px" });
  figures.forEach((figure) => watcher.observe(figure.root));

  // A page that grows tells of new data in a chart, or of a chart that was not there.
  document.addEventListener("fsdtrain:chart", (event) => {
    const known = byRoot.get(event.target);
    if (known) {
      known.parsed = null;
      const off = event.target.querySelectorAll("[data-traces][aria-pressed=false]");
      known.hidden = new Set([...off].flatMap((button) => button.dataset.traces.split(" ").map(Number)));
      known.refresh();
      return;
    }
    const figure = new Figure(event.target);
    figures.push(figure);
    byRoot.set(event.target, figure);
    watcher.observe(event.target);
  });

  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return; // phones resize when their address bar hides
    width = window.innerWidth;
    figures.forEach((figure) => figure.refresh());
  });
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => {
    figures.forEach((figure) => { if (details.contains(figure.root)) figure.refresh(); });
  }));
  document.querySelectorAll("[data-act=smooth]").forEach((button) => button.addEventListener("click", () => {
    const isSmooth = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(isSmooth));
    figures.forEach((figure) => {
      figure.isSmooth = isSmooth;
      if (figure.spec.data.some((trace) => trace.meta === "smooth")) figure.refresh();
    });
  }));
  document.querySelectorAll("[data-act=reset]").forEach((button) => button.addEventListener("click", () => {
    links.clear();
    button.disabled = true;
    figures.forEach((figure) => figure.refresh());
  }));
  document.addEventListener("fsdtrain:theme", () => figures.forEach((figure) => {
    figure.isStale = true;
    drawSoon(figure);
  }));
  document.addEventListener("fsdtrain:print", drawAll);
})();
