"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const stored = JSON.parse(document.getElementById("maps").textContent);
const options = { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]],
  toImageButtonOptions: { format: "svg" } };

// -- colours: the figures have those of a light ground; here they become the page's ------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const variants = Array.from({ length: 100 }, (_, n) => n).findIndex(n => !colour(`v${n}`));

function dressed(figure) {
  const { data, layout } = structuredClone(figure);
  for (const trace of data) {
    if (trace.type === "heatmap") trace.colorscale = [[0, colour("map0")], [0.5, colour("map1")], [1, colour("map2")]];
    if (trace.legendgroup === undefined) continue;
    const own = colour(`v${trace.legendgroup % variants}`);
    for (const part of [trace.line, trace.marker, trace.error_x, trace.error_y]) if (part?.color) part.color = own;
    if (trace.fillcolor) trace.fillcolor = `${own}${dark.matches ? "33" : "22"}`;
  }
  layout.font.color = colour("ink");
  Object.assign(layout.modebar, { color: colour("faint"), activecolor: colour("soft") });
  Object.assign(layout.hoverlabel, { bgcolor: colour("ground"), bordercolor: colour("edge") });
  layout.hoverlabel.font.color = colour("ink");
  for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { gridcolor: colour("grid"), linecolor: colour("edge") });
  if (layout.plot_bgcolor !== "rgba(0,0,0,0)") layout.plot_bgcolor = colour("gap");
  return { data, layout };
}

// -- charts ------------------------------------------------------------------------------------------------

function draw(place) {
  place.dataset.drawn = "1";
  const { data, layout } = dressed(figures[place.dataset.figure]);
  const off = hiddenVariants(place.closest(".measured, section"));
  for (const trace of data) if (off.has(trace.legendgroup)) trace.visible = false;
  Plotly.react(place, data, layout, options);
}
function hiddenVariants(part) {
  return new Set([...part.querySelectorAll(".legend button[aria-pressed=false]")].map(b => b.dataset.variant));
}

// The legend shows and hides a variant in every chart of its section, or a series in those of its curves.
for (const button of document.querySelectorAll(".legend button")) button.addEventListener("click", () => {
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
  button.closest(".measured, section").querySelectorAll("[data-drawn][data-figure]").forEach(draw);
});

// -- attention maps ----------------------------------------------------------------------------------------

const DIGITS = new Map([..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].map((c, i) => [c, i]));

// Weights [T][S] of one head, or with head null the mean of all; null where there is none.
function weightsOf(map, width, head, data) {
  const height = map.target.length, size = height * width;
  const at = (h, t, s) => {
    const place = 2 * (h * size + t * width + s);
    const level = 64 * DIGITS.get(map.weights[place]) + DIGITS.get(map.weights[place + 1]);
    return level === data.missing ? null : map.low + level * (map.high - map.low) / data.levels;
  };
  const heads = head === null ? Array.from({ length: map.heads }, (_, h) => h) : [head];
  return map.target.map((_, t) => Array.from({ length: width }, (_, s) => {
    const values = heads.map(h => at(h, t, s));
    return values.includes(null) ? null : values.reduce((a, b) => a + b) / values.length;
  }));
}

// Plotly reads tags and entities in every text.
const plain = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function mapFigure(source, map, rows) {
  const figure = structuredClone(stored.template), heat = figure.data[0], { layout } = figure;
  const [columns, outputs] = [source.map(plain), map.target.map(plain)];
  heat.z = rows;
  heat.text = outputs.map(out => columns.map(token => `${out} ← ${token}`));
  for (const [axis, names] of [[layout.xaxis, columns], [layout.yaxis, outputs]])
    Object.assign(axis, { tickvals: names.map((_, i) => i), ticktext: names });
  layout.height = 126 + 19 * Math.max(outputs.length, 3);
  return figure;
}

// One viewer a data set: a sentence, a seed and a head at a time, of as many variants as are ticked.
function viewer(root) {
  const data = stored.maps[root.dataset.maps], find = name => root.querySelector(name);
  const sentence = find(".sentence select"), seed = find("select.seed"), head = find("select.head");
  const boxes = [...root.querySelectorAll(".choice input")], maps = find(".maps"), shown = new Map();

  function panel(index, label) {
    const figure = document.createElement("figure");
    figure.dataset.variant = index;
    figure.innerHTML = '<figcaption><span class="said"></span></figcaption><div class="scroll"><div class="plot"></div></div>';
    figure.querySelector("figcaption").prepend(label.querySelector(".swatch").cloneNode());
    return figure;
  }
  function fill(figure, variant) {
    const own = seed && variant.seeds.includes(Number(seed.value)) ? Number(seed.value) : variant.seeds[0];
    const map = data.maps[`${variant.index}/${own}/${sentence.value}`], place = figure.querySelector(".plot");
    const chosen = head && head.value !== "" ? Number(head.value) : null;
    const said = [variant.label, `seed ${own}`];
    if (!map) {
      figure.querySelector(".said").textContent = [...said, "no map of this sentence"].join(", ");
      Plotly.purge(place);
      return;
    }
    const single = map.heads === 1 ? 0 : chosen !== null && chosen < map.heads ? chosen : null;
    if (map.heads > 1) said.push(single === null ? `mean of ${map.heads} heads` : `head ${single + 1} of ${map.heads}`);
    figure.querySelector(".said").textContent = said.join(", ");
    const source = data.sentences[sentence.value];
    const rows = weightsOf(map, source.length, single, data);
    const longest = Math.max(0, ...map.target.map(token => token.length));
    place.style.width = `${90 + 9 * longest + 20 * source.length}px`;
    const { data: traces, layout } = dressed(mapFigure(source, map, rows));
    Plotly.react(place, traces, layout, options);
  }
  function update() {
    find(".place").textContent = `${sentence.selectedIndex + 1} of ${sentence.length}`;
    for (const box of boxes) {
      const index = Number(box.value), figure = shown.get(index);
      if (box.checked && !figure) shown.set(index, panel(index, box.parentElement));
      if (!box.checked && figure) { Plotly.purge(figure.querySelector(".plot")); figure.remove(); shown.delete(index); }
    }
    for (const variant of data.variants) if (shown.has(variant.index)) {
      maps.append(shown.get(variant.index));  // in the table's order
      fill(shown.get(variant.index), variant);
    }
  }
  function step(by) {
    sentence.selectedIndex = (sentence.selectedIndex + by + sentence.length) % sentence.length;
    update();
  }
  find(".previous").addEventListener("click", () => step(-1));
  find(".next").addEventListener("click", () => step(1));
  for (const control of [sentence, seed, head, ...boxes]) control?.addEventListener("change", update);
  root.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && event.target.tagName !== "SELECT") { event.preventDefault(); step(by); }
  });
  return update;
}

// -- all figures are drawn when they first come near the view, and anew when the colours change ------------

const redraw = new Map();
const observer = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) {
    observer.unobserve(entry.target);
    const again = entry.target.dataset.maps ? viewer(entry.target) : () => draw(entry.target);
    redraw.set(entry.target, again);
    again();
  }
}, { rootMargin: "600px" });
document.querySelectorAll("[data-figure], [data-maps]").forEach(place => observer.observe(place));
dark.addEventListener("change", () => redraw.forEach(again => again()));
window.addEventListener("beforeprint", () => document.querySelectorAll("[data-figure]:not([data-drawn])").forEach(draw));

// -- tables ------------------------------------------------------------------------------------------------

// A click on a column's title sorts by it, a second click the other way round; empty cells stay last.
for (const table of document.querySelectorAll("table.sortable")) table.tHead.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  const th = button.closest("th"), column = th.cellIndex, body = table.tBodies[0];
  const down = th.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => {
    const cell = row.cells[column], text = (cell.dataset.value ?? cell.textContent).trim();
    const number = Number(text.replaceAll(",", ""));
    return text === "" || text === "-" ? null : Number.isNaN(number) ? text : number;
  };
  const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  const rows = [...body.rows].map(row => [key(row), row]);
  rows.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1 : down ? order(b, a) : order(a, b));
  for (const [, row] of rows) body.append(row);
});

for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", async () => {
  const place = document.getElementById(button.dataset.copies);
  getSelection().selectAllChildren(place);  // to copy by hand where a browser refuses
  try {
    await navigator.clipboard.writeText(place.textContent);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Selected: copy it with the keyboard";
  }
});
