/**
 * The SDK on real exports, through ONNX Runtime Web in Node.
 *
 * LLMASOS_ARTIFACTS names a folder that `tests/test_web.py` fills: exports, and what Python answers with them.
 */

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { BundleError, DeviceError, LocalModel, ParityError, RemoteError, UsageError } from "../dist/index.js";
import { openOnnx } from "../dist/runtime.js";
import { believed, served } from "./serving.mjs";

const folder = process.env.LLMASOS_ARTIFACTS;
const skip = folder ? false : "needs exports: tests/test_web.py makes them";
const json = (...names) => JSON.parse(readFileSync(join(folder, ...names), "utf8"));

async function withModel(name, use, changes = {}, options = {}, open = undefined) {
  const server = await served(join(folder, name), changes);
  try {
    const model = await LocalModel.load(server.url, options, open);
    const found = await use(model);
    await model.close();
    return found;
  } finally {
    server.close();
  }
}

function near(found, wanted, digits, path = "") {
  if (typeof wanted === "number" && !Number.isInteger(wanted))
    return assert.ok(Math.abs(found - wanted) <= digits, `${path}: ${found} where Python gives ${wanted}`);
  if (wanted === null || typeof wanted !== "object") return assert.equal(found, wanted, path);
  for (const key of Object.keys(wanted)) near(found[key], wanted[key], digits, `${path}.${key}`);
}

const asks = {
  classify: (model, rows) => model.classify(rows),
  pairs: (model, rows) => model.classify(rows),
  labels: (model, rows) => model.classify(rows),
  tag: (model, rows) => Promise.all(rows.map((row) => model.tag(row))),
  answer: (model, rows) => model.answer(rows),
  similarity: async (model, rows) => (await model.similarity(rows)).map((score) => ({ score })),
};
for (const [name, ask] of Object.entries(asks))
  test(`${name}: the answers of Python`, { skip }, async () => {
    const { rows, answers } = json(name, "..", `${name}.json`);
    await withModel(name, async (model) => {
      assert.equal(model.device, "wasm");
      assert.ok(model.verified.relative <= model.verified.allowed);
      near(await ask(model, rows), answers, 2e-4);
    });
  });

test("vectors are those of Python, of length 1", { skip }, async () => {
  const { texts, vectors } = json("embed.json");
  await withModel("similarity", async (model) => {
    const found = await model.embed(texts);
    near(found.map((vector) => Array.from(vector)), vectors, 1e-4);
    assert.ok(Math.abs(Math.hypot(...found[0]) - 1) < 1e-5);
  });
});

test("int8 and float16 answer as Python does with them, within their step", { skip }, async () => {
  for (const name of ["classify-int8", "classify-float16"]) {
    const { rows, answers } = json("classify.json");
    await withModel(name, async (model) => {
      const found = await model.classify(rows);
      assert.deepEqual(found.map(({ label }) => label), answers.map(({ label }) => label), name);
      near(found.map(({ score }) => score), answers.map(({ score }) => score), 0.1);
    });
  }
});

test("a file that was changed is refused", { skip }, async () => {
  const changes = { "golden.json": (content) => content.toString().replace(/\d(?=\D*$)/, (digit) => (Number(digit) + 1) % 10) };
  await assert.rejects(withModel("classify", () => {}, changes), BundleError);
  await assert.rejects(withModel("classify", () => {}, { "config.json": () => "{}" }), BundleError);
});

test("an output that is not the golden one is refused", { skip }, async () => {
  const changes = await believed(folder, "classify", "golden.json", (golden) => (golden.examples[2].outputs[0][0] += 1));
  await assert.rejects(withModel("classify", () => {}, changes), (error) => {
    assert.ok(error instanceof ParityError);
    assert.match(error.message, /golden row 3 differs by 1\.0/);
    return true;
  });
});

test("a token that is not the golden one is refused before the model is fetched", { skip }, async () => {
  const changes = await believed(folder, "classify", "golden.json", (golden) => (golden.examples[1].ids[0][1] += 1));
  changes["onnx/model.onnx"] = () => assert.fail("the model was fetched");
  await assert.rejects(withModel("classify", () => {}, changes), /other tokens of golden row 2/);
});

test("wrong numbers on WebGPU: WebAssembly answers, and it is said", { skip }, async (t) => {
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  const gpu = { requestAdapter: async () => ({ features: new Set() }) };
  Object.defineProperty(globalThis, "navigator", { value: { gpu }, configurable: true });
  t.after(() => (before ? Object.defineProperty(globalThis, "navigator", before) : delete globalThis.navigator));
  const opened = [];
  const open = async (graph, device, threads, place) => {
    opened.push(device);
    const engine = await openOnnx(graph, "wasm", threads, place);
    if (device === "wasm") return engine;
    const run = async (sequences) => (await engine.run(sequences)).map(({ data, width }) => ({ data: data.map((x) => x + 1), width }));
    return { device, threads, run, release: () => engine.release() };
  };
  const { rows, answers } = json("classify.json");
  await withModel("classify", async (model) => {
    assert.deepEqual(opened, ["webgpu", "wasm"]);
    assert.equal(model.device, "wasm");
    assert.match(model.notes[0], /on WebAssembly, since on WebGPU an output of golden row \d differs by/);
    near(await model.classify(rows), answers, 2e-4);
  }, {}, {}, open);
  opened.length = 0;
  await withModel("classify-int8", (model) => assert.equal(model.device, "wasm"), {}, {}, open);
  assert.deepEqual(opened, ["wasm"]); // integers are computed on WebAssembly alone
});

test("what cannot be done is refused by name", { skip }, async () => {
  await assert.rejects(withModel("classify", () => {}, {}, { device: "webgpu" }), DeviceError);
  await assert.rejects(withModel("classify", () => {}, {}, { device: "tpu" }), UsageError);
  await assert.rejects(withModel("nothing", () => {}), RemoteError);
  await withModel("classify", async (model) => {
    await assert.rejects(model.embed(["a"]), UsageError);
    await assert.rejects(model.classify(""), /is empty/);
    await assert.rejects(model.classify({ text: "a", text_pair: "b" }), /single texts/);
    assert.equal((await model.verify()).device, "wasm");
  });
});

test("progress is told of every file", { skip }, async () => {
  const files = new Set();
  await withModel("classify", () => {}, {}, { progress: ({ file }) => files.add(file) });
  assert.ok(files.has("onnx/model.onnx"));
  assert.ok(existsSync(join(folder, "classify", "index.html")));
});
