/**
 * Write what an export to the web brings besides its model: the page, this SDK and ONNX Runtime Web, each minified.
 *
 *     node bundle.mjs FOLDER
 */

import { build } from "esbuild";
import { copyFile, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const [, , folder] = process.argv;
if (!folder) throw new Error("node bundle.mjs FOLDER");
const here = dirname(fileURLToPath(import.meta.url));
const packages = join(here, "node_modules");
const app = join(folder, "app");
await mkdir(app, { recursive: true });

const common = { bundle: true, minify: true, format: "esm", target: "es2022", legalComments: "none", logLevel: "error" };
const made = await build({
  ...common,
  entryPoints: { llmasos: join(here, "page/sdk.ts"), page: join(here, "page/page.ts") },
  outdir: app,
  splitting: true,
  metafile: true,
  // ONNX Runtime Web's WebAssembly stays in files of its own, beside the code
  conditions: ["onnxruntime-web-use-extern-wasm"],
});
await build({ ...common, format: "iife", entryPoints: [join(here, "page/worker.ts")], outfile: join(folder, "sw.js") });
for (const name of ["index.html", "icon.svg", "manifest.webmanifest"]) await copyFile(join(here, "page", name), join(folder, name));
await copyFile(join(here, "page/style.css"), join(app, "style.css"));

/** Return the text of a licence that a package names and does not ship. */
async function named({ name, license, author }) {
  if (license !== "MIT") throw new Error(`${name} has no licence text: ${license}`);
  const owner = typeof author === "string" ? author : (author?.name ?? `the authors of ${name}`);
  return `Copyright (c) ${owner}\n\n${(await readFile(join(here, "mit.txt"), "utf8")).trim()}`;
}

const runtime = join(packages, "onnxruntime-web");
const kinds = { "": "wasm", ".asyncify": "webgpu" };
for (const kind of Object.keys(kinds))
  for (const end of ["mjs", "wasm"]) {
    const name = `ort-wasm-simd-threaded${kind}.${end}`;
    await copyFile(join(runtime, "dist", name), join(app, name));
  }

// whose code this is, and under which licences
const used = new Set(Object.keys(made.metafile.inputs).map((path) => path.match(/node_modules\/((@[^/]+\/)?[^/]+)/)?.[1]));
const licences = [];
const versions = {};
for (const name of [...used].filter(Boolean).sort()) {
  const about = JSON.parse(await readFile(join(packages, name, "package.json"), "utf8"));
  versions[name] = about.version;
  const files = (await readdir(join(packages, name))).filter((file) => /^(licen[cs]e|notice|thirdpartynotices)/i.test(file));
  const texts = await Promise.all(files.map((file) => readFile(join(packages, name, file), "utf8")));
  if (!texts.length) texts.push(await named(about));
  licences.push(`${name} ${about.version}, ${about.license}\n\n${texts.map((text) => text.trim()).join("\n\n")}\n`);
}
await writeFile(join(app, "LICENSES.txt"), licences.join(`\n${"-".repeat(80)}\n\n`));
await writeFile(join(folder, "versions.json"), `${JSON.stringify(versions)}\n`);
