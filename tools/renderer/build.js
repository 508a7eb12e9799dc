// Writes src/mechdiff/data/renderer.js: the bundle, headed by the licences of all that is in it. `make renderer` runs it.
import { build } from "esbuild";
import { existsSync, readFileSync, writeFileSync } from "node:fs";

const made = await build({
  entryPoints: ["renderer.js"], alias: { vega: "./few_of_vega.js" }, bundle: true, minify: true, format: "iife", target: "es2022", charset: "ascii",
  legalComments: "none", metafile: true, write: false,
});

const packages = new Set();
for (const [path, part] of Object.entries(Object.values(made.metafile.outputs)[0].inputs)) {
  const found = path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/);
  if (found && part.bytesInOutput) packages.add(found[1]);
}

const licences = new Map();
for (const name of [...packages].sort()) {
  const told = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
  const [holders, terms] = read(name);
  const known = licences.get(terms) ?? [];
  licences.set(terms, [...known, `${name} ${told.version}, ${told.license}: ${holders}`]);
}

// Who holds the copyright, and the terms, which many packages share word for word.
function read(name) {
  const file = existsSync(`node_modules/${name}/LICENSE`) ? name : { "vega-interpreter": "vega" }[name]; // of one repository, and one licence
  const lines = readFileSync(`node_modules/${file}/LICENSE`, "utf8").split("\n").map((line) => line.trim());
  const holds = (line) => /^(Copyright|All rights reserved)/.test(line);
  return [lines.filter(holds).join(" "), lines.filter((line) => !holds(line)).join(" ").replace(/\s+/g, " ").trim()];
}

const notices = [...licences].map(([terms, names]) => `${names.join("\n")}\n\n${terms}`).join("\n\n");
if (notices.includes("*/")) throw new Error("a licence would end the comment that it stands in");
const script = made.outputFiles[0].text;
if (/<\/script|<!--/i.test(script + notices)) throw new Error("the bundle would end the element of the page that it stands in");
writeFileSync("../../src/mechdiff/data/renderer.js", `/*! Vega-Lite, Vega and what they are made of, for the charts of this page.\n\n${notices}\n*/\n${script}`);
console.log(`${packages.size} packages, ${licences.size} licences, ${script.length} characters`);
