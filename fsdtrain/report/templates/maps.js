// Heat maps over a machine: the whole step or a slice of it, by node, die or tile. One set of
// controls moves all maps. Cells are bytes: 0 to 254 of the largest, 255 where nothing is.
(() => {
  "use strict";
  const NOTHING = 255;
  const state = { level: 0, slice: 0 };
  const decoded = new WeakMap();

  function bytesOf(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  }

  function slicesOf(map) {
    if (!decoded.has(map)) decoded.set(map, (map.slices || []).map(bytesOf));
    return decoded.get(map);
  }

  // Row by row, values or null: the whole step, or a slice.
  function cells(map, slice) {
    const found = slice && slicesOf(map)[slice - 1];
    if (!found) return map.whole;
    return map.whole.map((row, r) =>
      row.map((_, c) => {
        const byte = found[r * row.length + c];
        return byte === NOTHING ? null : (byte / (NOTHING - 1)) * map.top;
      }));
  }

  // Means of blocks of rows x columns; what has nothing in it stays empty.
  function blocks(values, level) {
    if (level.rows === 1 && level.columns === 1) return values;
    const found = [];
    for (let r = 0; r < values.length; r += level.rows) {
      const line = [];
      for (let c = 0; c < values[0].length; c += level.columns) {
        let sum = 0;
        let count = 0;
        for (const row of values.slice(r, r + level.rows)) {
          for (const value of row.slice(c, c + level.columns)) if (value !== null) { sum += value; count += 1; }
        }
        line.push(count ? sum / count : null);
      }
      found.push(line);
    }
    return found;
  }

  function largest(values) {
    let top = 0;
    for (const row of values) for (const value of row) if (value > top) top = value;
    return top;
  }

  // The top of the scale is that of all slices, so that they can be compared.
  function topOf(map, level) {
    map.tops ||= {};
    const key = `${state.level}/${state.slice ? 1 : 0}`;
    const slices = state.slice ? slicesOf(map).map((_, number) => number + 1) : [0];
    map.tops[key] ||= Math.max(...slices.map((slice) => largest(blocks(cells(map, slice), level)))) || 1;
    return map.tops[key];
  }

  const amount = (map, value) =>
    map.unit === "share" ? `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %` : `${value.toPrecision(3)} ${map.unit}`;

  window.fsdtrainMaps = {
    fill(map, data) {
      const level = map.levels[Math.min(state.level, map.levels.length - 1)];
      const values = blocks(cells(map, state.slice), level);
      const trace = data[0];
      trace.z = values;
      trace.x0 = (level.columns - 1) / 2;
      trace.dx = level.columns;
      trace.y0 = (level.rows - 1) / 2;
      trace.dy = level.rows;
      trace.zmin = 0;
      trace.zmax = topOf(map, level);
      const where = level.rows * level.columns === 1 ? "row %{y}, column %{x}" : `${level.name} around row %{y:.0f}, column %{x:.0f}`;
      trace.hovertemplate = `${where}<br><b>%{z${map.unit === "share" ? ":.1%" : ":.3s"}}${map.unit === "share" ? "" : map.unit}</b><extra></extra>`;
    },
    listen(redraw) {
      document.querySelectorAll(".maptools").forEach((tools) => {
        const range = tools.querySelector("input[type=range]");
        const shown = tools.querySelector("output");
        if (range) {
          const labels = JSON.parse(tools.querySelector("script").textContent);
          range.addEventListener("input", () => {
            state.slice = Number(range.value);
            shown.textContent = labels[state.slice];
            range.setAttribute("aria-valuetext", labels[state.slice]);
            redraw();
          });
        }
        const levels = [...tools.querySelectorAll("[data-level]")];
        levels.forEach((button) => button.addEventListener("click", () => {
          state.level = Number(button.dataset.level);
          levels.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
          redraw();
        }));
      });
    },
    amount,
  };
})();
