"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plots = [];

  function theme(layout) {
    const themed = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    themed.font = { ...(layout.font || {}), color: color("--text"), size: 12.5 };
    themed.margin = { l: 64, r: 16, t: 24, b: 48, ...(layout.margin || {}) };
    themed.legend = { orientation: "h", y: 1.02, yanchor: "bottom", ...(layout.legend || {}) };
    themed.hoverlabel = { bgcolor: color("--card"), font: { color: color("--text") } };
    for (const key of Object.keys(layout).concat(["xaxis", "yaxis"])) {
      if (/^[xy]axis\d*$/.test(key)) {
        const axis = layout[key] || {};
        themed[key] = {
          automargin: true, ...axis, gridcolor: color("--grid"), zerolinecolor: color("--grid"),
          linecolor: color("--line"), tickcolor: color("--line"),
        };
        // with a standoff a title keeps clear of the numbers, and the margin grows for it
        if (axis.title) themed[key].title = { standoff: 10, ...axis.title };
      }
    }
    return themed;
  }

  function draw(script) {
    const target = document.getElementById(script.dataset.figure);
    const figure = JSON.parse(script.textContent);
    plots.push([target, figure]);
    return Plotly.newPlot(target, figure.data, theme(figure.layout), {
      responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    });
  }

  // A figure is drawn when it comes near the window, or before the page is printed; one after the
  // other, so that the page can be read and scrolled meanwhile.
  const waiting = new Map();
  const near = new Set();
  let busy = false;
  function take(target) {
    const script = waiting.get(target);
    waiting.delete(target);
    near.delete(target);
    observer.unobserve(target);
    return draw(script);
  }
  async function drawNear() {
    if (busy) return;
    busy = true;
    document.documentElement.dataset.drawn = "false";
    for (const target of waiting.keys()) {
      if (!near.has(target)) continue;
      await take(target);
      await new Promise((done) => { setTimeout(done, 0); });
    }
    busy = false;
    if (near.size) drawNear();
    else document.documentElement.dataset.drawn = "true";
  }
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && waiting.has(entry.target)) near.add(entry.target);
      else near.delete(entry.target);
    }
    drawNear();
  }, { rootMargin: "50% 0px" });
  for (const script of document.querySelectorAll("script[data-figure]")) {
    const target = document.getElementById(script.dataset.figure);
    waiting.set(target, script);
    observer.observe(target);
  }
  if (!waiting.size) document.documentElement.dataset.drawn = "true";
  window.addEventListener("beforeprint", () => {
    for (const target of [...waiting.keys()]) take(target);
  });
  dark.addEventListener("change", () => {
    for (const [target, figure] of plots) Plotly.react(target, figure.data, theme(figure.layout));
  });

  function filter(input) {
    const table = document.getElementById(input.dataset.filter);
    const terms = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase() + " " + [...row.cells].map((c) => c.textContent.toLowerCase()).join(" ");
      const match = terms.every((term) => text.includes(term));
      row.hidden = !match;
      shown += match ? 1 : 0;
    }
    document.querySelector(`[data-count="${table.id}"]`).textContent = `${shown} rows`;
  }
  for (const input of document.querySelectorAll("[data-filter]")) {
    input.addEventListener("input", () => filter(input));
  }

  function value(row, column) {
    const cell = row.cells[column];
    return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
  }
  for (const button of document.querySelectorAll("table.sortable th button")) {
    button.addEventListener("click", () => {
      const heading = button.parentElement;
      const table = heading.closest("table");
      const order = heading.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = value(a, heading.cellIndex), y = value(b, heading.cellIndex);
        return sign * (typeof x === "number" && typeof y === "number" ? x - y || 0 : String(x).localeCompare(String(y)));
      });
      table.tBodies[0].append(...rows);
    });
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const table = document.getElementById(button.dataset.copy);
      const rows = [table.tHead.rows[0], ...[...table.tBodies[0].rows].filter((row) => !row.hidden)];
      const text = rows.map((row) => [...row.cells].map((c) => c.textContent.trim()).join("\t")).join("\n");
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      const label = button.textContent;
      button.textContent = `Copied ${rows.length - 1} rows`;
      setTimeout(() => { button.textContent = label; }, 1500);
    });
  }
})();
