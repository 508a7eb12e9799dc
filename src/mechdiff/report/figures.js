// ---- figures: each travels as data and is drawn when it comes into view, as wide as the page, light or dark

const LAID_OUT = 700; // the width that a figure's specification is made for (drawing.WIDE)
const WIDEST = 1000;
const darkness = window.matchMedia("(prefers-color-scheme: dark)"), printing = window.matchMedia("print");
const COLOURS = JSON.parse(document.getElementById("dark").textContent); // by colour on a light page: the same thing's colour on a dark one

function content(figure) {
  return JSON.parse(figure.querySelector("script.data").textContent);
}

function recordsOf(table) {
  const names = Object.keys(table), n = names.length ? table[names[0]].length : 0;
  return Array.from({ length: n }, (_, row) => Object.fromEntries(names.map((name) => [name, table[name][row]])));
}

function otherColours(part) {
  if (Array.isArray(part)) return part.map(otherColours);
  if (part && typeof part === "object") return Object.fromEntries(Object.entries(part).map(([key, one]) => [key, otherColours(one)]));
  return typeof part === "string" ? COLOURS[part.toLowerCase()] ?? part : part;
}

// ---- to another width: panels grow and shrink, those side by side stand one below the other on a phone, and words break or make room

function toWidth(part, change, narrow) {
  const fit = (one, by) => toWidth(one, by, narrow);
  if (part.hconcat && narrow) {
    const { hconcat, ...rest } = part, beside = (LAID_OUT - hconcat.reduce((sum, one) => sum + (one.width ?? 0), 0)) / hconcat.length;
    return { ...rest, vconcat: hconcat.map((one) => fit(one, LAID_OUT + change - beside - (one.width ?? 0))) };
  }
  const made = { ...part };
  for (const how of ["vconcat", "hconcat", "concat"]) {
    if (made[how]) made[how] = made[how].map((one) => fit(one, how === "vconcat" ? change : change / made[how].length));
  }
  if (typeof made.width === "number") made.width = Math.max(40, Math.round(made.width + change));
  if (made.title) made.title = broken(made.title, made.width ?? LAID_OUT + change);
  if (narrow && made.layer) made.layer = made.layer.map((one) => fit(one, change));
  if (narrow && made.encoding) made.encoding = Object.fromEntries(Object.entries(made.encoding).map(([channel, one]) => [channel, roomy(one, LAID_OUT + change)]));
  return made;
}

function lines(text, most) {
  const found = [""];
  for (const word of text.split(" ")) {
    const last = found.at(-1);
    if (last && last.length + word.length + 1 > most) found.push(word);
    else found[found.length - 1] = last ? `${last} ${word}` : word;
  }
  return found;
}

function broken(title, width) {
  const told = typeof title === "string" ? { text: title } : title, size = told.fontSize ?? 12.5;
  if (typeof told.text !== "string" || told.text.length * size * 0.52 <= width) return title;
  return { ...told, text: lines(told.text, Math.floor(width / (size * 0.52))) };
}

function roomy(channel, width) {
  const made = { ...channel };
  if (made.axis?.labelAngle === 0 && made.axis.orient !== "left" && Array.isArray(made.sort) && made.sort.join("").length * 7 > width - 100) {
    made.axis = { ...made.axis, labelAngle: -40, labelAlign: "right" };
  }
  if (made.axis?.labelOverlap === false) made.axis = { ...made.axis, labelOverlap: "greedy" };
  if (made.axis && typeof made.title === "string" && made.title.length > 40) made.title = lines(made.title, 40);
  if (made.legend?.orient === "top" && made.scale?.domain && typeof made.scale.domain[0] === "string") {
    const longest = Math.max(...made.scale.domain.map((name) => String(name).length)) * 6.5 + 40;
    const columns = Math.max(1, Math.floor(width / longest));
    made.legend = { ...made.legend, columns: columns < made.scale.domain.length ? columns : 0 };
  }
  return made;
}

// ---- drawing

const SILENT = Object.fromEntries(["level", "error", "warn", "info", "debug"].map((name) => [name, () => SILENT])); // what a chart is made of is settled in Python

function view(figure, width, dark) {
  const { spec, tables } = content(figure);
  const fitted = toWidth(spec, width - LAID_OUT, width < 560), datasets = Object.fromEntries(tables.map((table, place) => [`t${place}`, recordsOf(table)]));
  const { spec: vega } = renderer.compile({ ...(dark ? otherColours(fitted) : fitted), datasets }, { logger: SILENT });
  return new renderer.View(renderer.parse(vega, null, { ast: true }), { expr: renderer.expressionInterpreter, renderer: "svg", hover: false });
}

const drawn = new Map(); // by figure: how it is drawn now

let onPaper = false; // the short print: figures stand beside their finding, smaller, and are laid out as on a wide page

function room(figure) {
  const width = Math.min(figure.querySelector(".plot").clientWidth, WIDEST);
  return width && (onPaper || printing.matches) && !("print" in document.body.dataset) ? LAID_OUT : width;
}

async function draw(figure) {
  const plot = figure.querySelector(".plot"), width = room(figure), dark = darkness.matches && !printing.matches;
  const now = drawn.get(figure);
  if (width < 100 || (now && Math.abs(now.width - width) < 8 && now.dark === dark)) return; // in what is folded there is no room yet
  drawn.set(figure, { width, dark, view: now?.view });
  const asked = drawn.get(figure);
  let inner = width;
  for (const last of [false, true]) { // names beside an axis may need more than was reckoned with
    asked.view?.finalize();
    asked.view = view(figure, inner, dark).initialize(plot);
    await asked.view.runAsync(); // waits for nothing but itself, and so is done before a page is printed
    const over = plot.querySelector("svg").width.baseVal.value - width;
    if (over <= 1 || last || drawn.get(figure) !== asked) break;
    inner -= over;
  }
  for (const group of plot.querySelectorAll('[role="graphics-symbol"]:not([aria-label])')) group.removeAttribute("role"); // of marks of which there are none
  plot.style.minHeight = "0"; // what was kept free for it
  plot.dataset.drawn = dark ? "dark" : "light";
}

const figures = [...document.querySelectorAll("figure:has(script.data)")];
const seen = new IntersectionObserver((entries) => { for (const one of entries) if (one.isIntersecting) draw(one.target); }, { rootMargin: "600px" });
for (const figure of figures) {
  figure.querySelector(".plot").style.minHeight = `${figure.dataset.height}px`;
  seen.observe(figure);
}

function again() {
  for (const figure of drawn.keys()) draw(figure);
}

let waiting = 0;
window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(again, 150); });
darkness.addEventListener("change", again);
printing.addEventListener("change", () => { if (!printing.matches) again(); });
window.addEventListener("beforeprint", () => { onPaper = true; figures.forEach(draw); });
window.addEventListener("afterprint", () => { onPaper = false; again(); });
printing.addEventListener("change", () => { if (printing.matches) figures.forEach(draw); });

// ---- to take with one: as on a light page, as wide as for paper

async function picture(figure) {
  const made = view(figure, LAID_OUT, false), svg = await made.toSVG();
  made.finalize();
  return svg;
}

async function asPng(figure) {
  const image = new Image(), url = URL.createObjectURL(new Blob([await picture(figure)], { type: "image/svg+xml" }));
  image.onload = () => {
    const canvas = make("canvas", { width: 2 * image.naturalWidth, height: 2 * image.naturalHeight });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(url);
    canvas.toBlob((blob) => keep(`${figure.id}.png`, blob), "image/png");
  };
  image.src = url;
}

// Its tables, without what is said of each mark; single rows (rules, words) are left out.
function figureRows(figure) {
  const tables = content(figure).tables.map((table) => Object.entries(table).filter(([name]) => name !== "says")).filter((table) => table.length && table[0][1].length > 1);
  return tables.flatMap((table, place) => [...(place ? [[]] : []), table.map(([name]) => name), ...table[0][1].map((_, row) => table.map(([, values]) => values[row]))]);
}

for (const figure of figures) {
  const tools = make("span", { class: "tools" });
  tools.append(button("SVG", async () => keep(`${figure.id}.svg`, new Blob([await picture(figure)], { type: "image/svg+xml" })), `${figure.id} as SVG`));
  tools.append(button("PNG", () => asPng(figure), `${figure.id} as PNG`));
  tools.append(button("CSV", () => keep(`${figure.id}.csv`, csv(figureRows(figure))), `data of ${figure.id} as CSV`));
  figure.querySelector("figcaption").append(" ", tools);
}
