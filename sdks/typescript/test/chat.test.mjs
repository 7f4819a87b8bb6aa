/**
 * A model that writes, exported, through ONNX Runtime Web in Node.
 *
 * LLMASOS_CHAT names a folder that `tests/test_web_writing.py` fills: exports, and what Python writes with them.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { LocalModel, ParityError, UsageError } from "../dist/index.js";
import { openOnnx } from "../dist/runtime.js";
import { believed, served } from "./serving.mjs";

const folder = process.env.LLMASOS_CHAT;
const skip = folder ? false : "needs exports: tests/test_web_writing.py makes them";
const json = (...names) => JSON.parse(readFileSync(join(folder, ...names), "utf8"));
const HI = [{ role: "user", content: "Hello, who are you?" }];

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

async function streamed(pieces) {
  const texts = [];
  let next = await pieces.next();
  for (; !next.done; next = await pieces.next()) texts.push(next.value);
  return [texts, next.value];
}

test("answers and continuations are those of Python, token for token, likeliest and drawn", { skip }, async () => {
  await withModel("float32", async (model) => {
    assert.equal(model.verified.written, 1);
    assert.ok(model.verified.relative <= model.verified.allowed);
    for (const { prompt, options, answer } of json("answers.json")) {
      const [texts, found] = await streamed(model.stream(prompt, options));
      assert.deepEqual(found, answer, JSON.stringify([prompt, options]));
      assert.equal(texts.join(""), answer.text);
      assert.ok(texts.length > 1 || answer.tokens.length < 3);
    }
  });
});

test("a conversation is answered under the names of the client of a server too", { skip }, async () => {
  await withModel("float32", async (model) => {
    const [whole, cut] = [await model.generate(HI), await model.generate(HI, { max_new_tokens: 3 })];
    assert.deepEqual(await model.chat(HI), whole);
    assert.deepEqual(await model.chat(HI[0].content, { max_tokens: 3 }), cut);
    await assert.rejects(model.chat(HI, { max_tokens: 3, max_new_tokens: 4 }), /are the same option/);
    await assert.rejects(model.chat(HI, { max_tokens: 0 }), /max_tokens=0/);
  });
});

test("int8 writes an answer, and float16 the same tokens", { skip }, async () => {
  const [{ prompt, options, answer }] = json("answers.json");
  await withModel("float16", async (model) => assert.deepEqual(await model.generate(prompt, options), answer));
  await withModel("int8-dynamic", async (model) => {
    assert.equal(model.precision, "int8-dynamic");
    assert.ok(model.verified.written > 0);
    assert.ok((await model.generate(prompt, options)).text.length > 5);
  });
});

test("writing ends when it is told to, and the model writes on", { skip }, async () => {
  await withModel("float32", async (model) => {
    const whole = await model.generate(HI);
    const stop = new AbortController();
    const texts = [];
    await assert.rejects(async () => {
      for await (const text of model.stream(HI, { signal: stop.signal })) {
        texts.push(text);
        if (texts.length === 3) stop.abort();
      }
    }, { name: "AbortError" });
    assert.equal(texts.length, 3);
    assert.ok(whole.text.startsWith(texts.join("")));
    await assert.rejects(model.generate(HI, { signal: stop.signal }), { name: "AbortError" });
    for await (const text of model.stream(HI)) {
      assert.equal(text, texts[0]);
      break;
    }
    assert.deepEqual(await model.generate(HI), whole);
  });
});

test("answers that are written at once are those that are written alone", { skip }, async () => {
  await withModel("float32", async (model) => {
    const prompts = [HI, "Once upon a time", [{ role: "user", content: "What can you do?" }]];
    const alone = [];
    for (const prompt of prompts) alone.push(await model.generate(prompt));
    assert.deepEqual(await Promise.all(prompts.map((prompt) => model.generate(prompt))), alone);
  });
});

test("long prompts are read in pieces, to the same answer", { skip }, async () => {
  const { prompt, options, answer } = json("long.json");
  assert.ok(answer.prompt_tokens > 300);
  await withModel("float32", async (model) => assert.deepEqual(await model.generate(prompt, options), answer));
});

test("what cannot be done is refused by name", { skip }, async () => {
  await withModel("float32", async (model) => {
    const refused = (prompt, options, message) => assert.rejects(model.generate(prompt, options), (error) => {
      assert.ok(error instanceof UsageError, String(error));
      assert.match(error.message, message);
      return true;
    });
    await refused(HI, { max_new_tokens: 0 }, /max_new_tokens=0/);
    await refused(HI, { max_new_tokens: 1.5 }, /whole number/);
    await refused(HI, { max_new_tokens: 5000 }, /the model's limit/);
    await refused(HI, { top_p: 0.5 }, /does nothing at temperature 0/);
    await refused(HI, { temperature: Number.NaN }, /temperature=NaN/);
    await refused(HI, { maxTokens: 5 }, /no option maxTokens/);
    await refused(HI, { stop: "" }, /empty stop string/);
    await refused([], {}, /nothing to answer/);
    await refused([{ role: "user", content: "a<|im_end|>b" }], {}, /control token <\|im_end\|>/);
    await refused([...HI, ...HI], {}, /user after user/);
    await refused([{ role: "robot", content: "a" }], {}, /role="robot"/);
    await assert.rejects(model.classify("a"), UsageError);
  });
});

const fetched = (name) => ({ [name]: () => assert.fail("the model was fetched") });

test("a golden answer that was changed is refused", { skip }, async () => {
  const other = await believed(folder, "float32", "golden.json", (golden) => (golden.examples[0].answer[0] += 1));
  await assert.rejects(withModel("float32", () => {}, other), (error) => {
    assert.ok(error instanceof ParityError);
    assert.match(error.message, /of the golden answers are other tokens/);
    return true;
  });
  const apart = await believed(folder, "int8-dynamic", "golden.json", (golden) => (golden.examples[1].outputs[0][0] += 50));
  await assert.rejects(withModel("int8-dynamic", () => {}, apart), /golden row 2 differs by/);
});

test("prompts that are not those of Python are refused before the model is fetched", { skip }, async () => {
  const graph = fetched("onnx/model.onnx");
  const refused = async (file, change, message, read = undefined) => {
    const changes = await believed(folder, "float32", file, change, read);
    await assert.rejects(withModel("float32", () => {}, { ...changes, ...graph }), (error) => {
      assert.ok(error instanceof ParityError, String(error));
      assert.match(error.message, message);
      return true;
    });
  };
  await refused("golden.json", (golden) => (golden.examples[1].ids[0][2] += 1), /golden row 2 becomes other tokens/);
  const last = (content) => content.prompts[content.prompts.length - 1];
  await refused("prompts.json", (content) => (last(content).rendered += " "), /the chat template makes another text/);
  await refused("prompts.json", (content) => last(content).ids.push(5), /prompt \d of prompts.json becomes other tokens/);
  await refused("prompts.json", (content) => (content.prompts[0].text += "."), /the tokens of prompt 1 .* are another text/);
  const spaced = (template) => template.replace("<|im_end|>", " <|im_end|>");
  await refused("chat_template.jinja", spaced, /golden row 1 becomes other tokens/, (content) => content.toString());
});

test("wrong numbers on WebGPU: WebAssembly writes, and it is said", { skip }, async (t) => {
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  const gpu = { requestAdapter: async () => ({ features: new Set() }) };
  Object.defineProperty(globalThis, "navigator", { value: { gpu }, configurable: true });
  t.after(() => (before ? Object.defineProperty(globalThis, "navigator", before) : delete globalThis.navigator));
  const open = async (graph, device, threads, place) => {
    const engine = await openOnnx(graph, "wasm", threads, place);
    if (device === "wasm") return engine;
    const next = async (ids, past) => {
      const found = await engine.next(ids, past);
      return { ...found, logits: found.logits.map((logit, i) => (i % 2 ? logit : -logit)) };
    };
    return { device, threads, next, release: () => engine.release() };
  };
  const [{ prompt, options, answer }] = json("answers.json");
  await withModel("float32", async (model) => {
    assert.equal(model.device, "wasm");
    assert.match(model.notes[0], /on WebAssembly, since on WebGPU \d+\.\d % of the golden answers are other tokens/);
    assert.deepEqual(await model.generate(prompt, options), answer);
  }, {}, {}, open);
});
