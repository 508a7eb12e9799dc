"use strict";
// What a mark or a token stands for (its site, value and interval), beside the pointer or the finger.
const tip = document.getElementById("tip");

function mark(target) {
  const found = target instanceof Element ? target.closest(".plot svg [aria-roledescription][aria-label], .strip-plot [data-says], .tokens [data-says], .cells [data-says]") : null;
  return found && (found.dataset.says || /^(circle|point|bar|rect mark)$/.test(found.getAttribute("aria-roledescription"))) ? found : null;
}

function show(event) {
  const found = mark(event.target);
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = found.dataset.says || found.getAttribute("aria-label");
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
}

document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// ---- small things

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function digits(value) {
  if (value === null || value === undefined) return "not defined";
  return (Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(Number(value.toPrecision(3)))).replace("-", "−");
}

function keep(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function csv(rows) {
  const cell = (value) => { const text = value === null || value === undefined ? "" : String(value); return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
  return new Blob([rows.map((row) => row.map(cell).join(",")).join("\n") + "\n"], { type: "text/csv" });
}

function button(text, action, label) {
  const made = make("button", { type: "button", ...(label ? { "aria-label": label } : {}) }, text);
  made.addEventListener("click", action);
  return made;
}

// ---- two levels: the summary, or everything; a link to anything opens what folds it

const everything = document.getElementById("everything");

function unfold(target) {
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
}

function level() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1))), whole = Boolean(target && everything.contains(target)) || "print" in document.body.dataset;
  if (whole) everything.removeAttribute("hidden");
  else everything.setAttribute("hidden", "until-found");
  for (const link of document.querySelectorAll(".levels a")) {
    if ((link.hash === "#everything") === whole) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  if (!whole) return;
  unfold(target);
  target?.scrollIntoView();
}

function all() {
  document.body.dataset.print = "all";
  for (const fold of document.querySelectorAll("#everything details")) fold.open = true;
}

everything.addEventListener("beforematch", () => { history.replaceState(null, "", "#everything"); level(); });
window.addEventListener("hashchange", level);
window.addEventListener("beforeprint", () => everything.removeAttribute("hidden")); // before figures are drawn for paper
window.addEventListener("afterprint", level);
if (new URLSearchParams(location.search).get("print") === "all") all();
level();

const printed = button("Print everything", () => {
  const open = [...document.querySelectorAll("#everything details:not([open])")];
  all();
  window.print();
  delete document.body.dataset.print;
  for (const fold of open) fold.open = false;
});
document.querySelector(".onward").append(" ", make("span", { class: "tools" }, button("Print the summary", () => window.print()), printed));

// which section is read now, in the list of sections
const here = new IntersectionObserver((seen) => {
  for (const one of seen) {
    const link = document.querySelector(`.contents a[href="#${CSS.escape(one.target.id)}"]`);
    if (one.isIntersecting) link?.setAttribute("aria-current", "true");
    else link?.removeAttribute("aria-current");
  }
}, { rootMargin: "-20% 0px -79% 0px" });
for (const section of document.querySelectorAll("section[id]")) here.observe(section);
const list = document.querySelector(".contents details"), beside = matchMedia("(min-width: 1100px)");
list.open = beside.matches;
beside.addEventListener("change", () => { list.open = beside.matches; });
for (const link of document.querySelectorAll(".contents ol a")) link.addEventListener("click", () => { if (!beside.matches) list.open = false; });

// what scrolls sideways or down can be reached by the keyboard, and its first column stays
const moving = new ResizeObserver((changed) => {
  for (const { target } of changed) {
    const moves = target.scrollWidth > target.clientWidth + 1 || (target.scrollHeight > target.clientHeight + 1 && getComputedStyle(target).overflowY === "auto");
    target.classList.toggle("moves", moves);
    if (moves) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const box of document.querySelectorAll(".scroll, .tokens, .said, pre")) moving.observe(box);

// ---- tables: sort, search, take

function number(text) {
  const found = text.replaceAll("−", "-").replaceAll("\u202f", "").replace(/ × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)/, (_, power) => "e" + [...power].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(c) ? "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(c) : "-").join(""));
  const value = Number.parseFloat(found.replaceAll(",", ""));
  return /^[-+]?[\d.]/.test(found) && !Number.isNaN(value) ? value : null;
}

function order(table, place, up) {
  const body = table.tBodies[0], key = (row) => row.cells[place]?.textContent.trim() ?? "";
  const rows = [...body.rows].map((row, at) => ({ row, at, text: key(row), value: number(key(row)) }));
  const last = (one) => one.text === "" || one.text === "–" || one.text === "not defined";
  rows.sort((a, b) => last(a) - last(b) || (a.value !== null && b.value !== null ? (a.value - b.value) * (up ? 1 : -1) : a.text.localeCompare(b.text) * (up ? 1 : -1)) || a.at - b.at);
  body.append(...rows.map((one) => one.row));
}

for (const table of document.querySelectorAll("table:not(.as-is)")) {
  const heads = [...table.tHead.rows[0].cells];
  if (table.tBodies[0].rows.length > 1 && !table.classList.contains("stacked")) {
    for (const [place, head] of heads.entries()) {
      if (!head.textContent.trim()) continue;
      const sorter = button(head.textContent, () => {
        const up = head.getAttribute("aria-sort") === "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        order(table, place, up);
      });
      head.replaceChildren(sorter);
    }
  }
  const tools = make("div", { class: "tools" }), name = table.closest("section")?.id ?? "table";
  if (table.tBodies[0].rows.length > 8) {
    const search = make("input", { type: "search", placeholder: "Search", "aria-label": "Search this table" });
    search.addEventListener("input", () => {
      const wanted = search.value.toLowerCase();
      for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    tools.append(search);
  }
  tools.append(button("CSV", () => keep(`${name}.csv`, csv([...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.replaceAll("\u00a0", " ").trim())))), `this table of ${name} as CSV`));
  table.parentElement.after(tools);
}

// ---- the causal map: every arm, direction and metric, and what stands behind a cell

const RAMP = ["#eef3f8", "#bcd2e8", "#7fadd4", "#3a7dbb", "#17508f", "#08264d"], WARM = ["#fdf3ea", "#f6c99b", "#dd8a3e", "#a24a0c", "#5c2500"];

function colour(ramp, at) {
  const place = Math.min(Math.max(at, 0), 1) * (ramp.length - 1), low = Math.floor(place), high = Math.min(low + 1, ramp.length - 1);
  const parts = [ramp[low], ramp[high]].map((hex) => [1, 3, 5].map((i) => Number.parseInt(hex.slice(i, i + 2), 16)));
  return `rgb(${parts[0].map((value, i) => Math.round(value + (place - low) * (parts[1][i] - value))).join(",")})`;
}

function explore(place) {
  const data = JSON.parse(place.querySelector("script.data").textContent);
  const chosen = { direction: Object.keys(data.directions)[0], arm: data.arms[0], metric: "share", unit: data.units[0] };
  const grid = make("div", { class: "cells", role: "grid", "aria-label": "Sites by layer" }), detail = make("div", { class: "detail", "aria-live": "polite" });
  const scale = make("p", { class: "scale" });
  let at = [0, 0];

  function choice(name, options) {
    const list = make("select", { "aria-label": name });
    for (const [value, words] of options) list.append(make("option", { value }, words));
    list.value = chosen[name];
    list.addEventListener("change", () => { chosen[name] = list.value; draw(); detail.replaceChildren(); });
    return make("label", {}, `${name} `, list);
  }

  const read = (site, layer) => data.cells[[chosen.direction, chosen.arm, chosen.unit, site, layer].join("|")];
  const value = (cell) => !cell ? null : chosen.metric === "share" ? cell.share ?? null : cell.m[chosen.metric]?.[0] ?? null;

  function says(site, layer, cell) {
    const where = `L${layer}.${site}`;
    if (!cell) return `${where}: not run`;
    const [low, high] = chosen.metric === "share" ? cell.ends && chosen.arm === "identity" ? cell.ends : [null, null] : (cell.m[chosen.metric] ?? []).slice(1);
    const ends = low === null || low === undefined ? "" : ` [95 % CI: ${digits(low)}, ${digits(high)}]`;
    return `${where}: ${digits(value(cell))}${ends}${cell.quiet ? ` (under ${data.floors} noise floors)` : ""}`;
  }

  function draw() {
    const all = data.sites.flatMap((site) => data.layers.map((layer) => value(read(site, layer)))).filter((one) => one !== null);
    const most = ["share", "top1_same"].includes(chosen.metric) ? 1 : Math.max(...all.map(Math.abs), 1e-300);
    scale.textContent = `Colour: 0 to ${digits(most)}, ${data.metrics[chosen.metric]}${all.some((one) => one < 0) ? "; orange: below 0" : ""}. A dot: under ${data.floors} noise floors.`;
    grid.style.gridTemplateColumns = `auto repeat(${data.layers.length}, minmax(0, 1fr))`;
    grid.replaceChildren();
    for (const [y, site] of data.sites.entries()) {
      const line = make("div", { class: "line", role: "row" }, make("span", { class: "site", role: "rowheader" }, site));
      grid.append(line);
      for (const [x, layer] of data.layers.entries()) {
        const cell = read(site, layer), found = value(cell), text = says(site, layer, cell);
        const one = make("button", { type: "button", role: "gridcell", tabindex: y === at[0] && x === at[1] ? "0" : "-1", "aria-label": text, "data-says": text, "data-at": `${y},${x}` });
        if (found !== null && !cell.quiet) one.style.backgroundColor = colour(found < 0 ? WARM : RAMP, Math.abs(found) / most);
        else one.classList.add("quiet");
        one.addEventListener("click", () => { at = [y, x]; open(site, layer, cell); });
        line.append(one);
      }
    }
    const foot = data.layers.map((layer) => make("span", { class: "layer", role: "columnheader", "aria-label": `layer ${layer}` }, data.layers.length > 16 && layer % 5 ? "" : String(layer)));
    grid.append(make("div", { class: "line", role: "row" }, make("span", { class: "site", role: "rowheader" }, "layer"), ...foot));
  }

  function open(site, layer, cell) {
    detail.replaceChildren(make("h4", {}, says(site, layer, cell)));
    const recovery = chosen.direction.startsWith("base"), metric = data.effect[chosen.direction];
    const values = cell?.p?.[metric];
    if (!values) { detail.append(make("p", { class: "note" }, "No values prompt by prompt are held for this cell.")); return; }
    const rows = data.prompts.map((prompt, i) => ({ ...prompt, effect: values[i] === null ? null : recovery ? prompt.d - values[i] : values[i] })).filter((row) => row.effect !== null);
    rows.sort((a, b) => b.effect - a.effect);
    const most = Math.max(...rows.map((row) => Math.abs(row.effect)), 1e-300);
    detail.append(make("p", { class: "note" }, `${recovery ? "Nats of D recovered" : "Nats broken: KL from the tuned model"}, prompt by prompt, the most affected first.`));
    const list = make("ol", { class: "prompts" });
    for (const row of rows) {
      const bar = make("span", { class: "bar" });
      bar.style.width = `${Math.max(0.5, 100 * Math.abs(row.effect) / most)}%`;
      if (row.effect < 0) bar.classList.add("below");
      list.append(make("li", {}, make("b", {}, row.id), ` ${digits(row.effect)} of ${digits(row.d)} nats`, make("span", { class: "track" }, bar), make("span", { class: "text", dir: "auto" }, row.text.slice(0, 600))));
    }
    detail.append(list, button("CSV", () => keep(`L${layer}.${site}.csv`, csv([["prompt", "effect_nats", "d_nats", "text"], ...rows.map((row) => [row.id, row.effect, row.d, row.text])])), "these values as CSV"));
  }

  grid.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    at = [Math.min(Math.max(at[0] + step[0], 0), data.sites.length - 1), Math.min(Math.max(at[1] + step[1], 0), data.layers.length - 1)];
    for (const one of grid.querySelectorAll("button")) one.tabIndex = one.dataset.at === at.join(",") ? 0 : -1;
    grid.querySelector(`[data-at="${at.join(",")}"]`).focus();
  });
  const choices = make("div", { class: "choices" }, choice("direction", Object.entries(data.directions)), choice("arm", data.arms.map((arm) => [arm, arm])), choice("metric", Object.entries(data.metrics)));
  if (data.units.length > 1) choices.append(choice("unit", data.units.map((unit) => [unit, unit || "one layer, decision position"])));
  place.append(choices, grid, scale, detail);
  place.hidden = false;
  draw();
}

document.querySelectorAll(".explorer").forEach(explore);
