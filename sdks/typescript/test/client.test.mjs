/**
 * The client against a real server: every route, and what Python answers.
 *
 * LLMASOS_SERVED names a folder with what `tests/test_web_client.py` has written: where the server is, and answers.
 */

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, test } from "node:test";

import { BrokenOffError, Client, TooLongError, UsageError } from "../../../src/llmasos/apps/page/llmasos.js";

const folder = process.env.LLMASOS_SERVED;
const skip = folder ? false : "needs a server: tests/test_web_client.py starts one";
const { url, rows, answers, vectors, written, has } = folder ? JSON.parse(readFileSync(join(folder, "served.json"), "utf8")) : {};
const HI = [{ role: "user", content: "Hello, who are you?" }];

const asked = new Set();
const client = new Client({
  url: `${url}/v1`,
  fetch: (address, init) => {
    asked.add(`${init.method} ${new URL(address).pathname}`);
    return fetch(address, init);
  },
});
after(() => folder && writeFileSync(join(folder, "asked.json"), JSON.stringify([...asked])));

function near(found, wanted, digits = 1e-5, path = "") {
  if (typeof wanted === "number" && !Number.isInteger(wanted))
    return assert.ok(Math.abs(found - wanted) <= digits, `${path}: ${found} where Python gives ${wanted}`);
  if (wanted === null || typeof wanted !== "object") return assert.equal(found, wanted, path);
  for (const key of Object.keys(wanted)) near(found[key], wanted[key], digits, `${path}.${key}`);
}

for (const name of ["classify", "tag", "answer", "translate", "summarize"])
  test(`${name}: the answers of Python, alone, together and by predict`, { skip }, async () => {
    const model = { model: name };
    near(await client[name](rows[name], model), answers[name]);
    near(await client[name](rows[name][0], model), answers[name][0]);
    near(await client.predict(rows[name], model), answers[name]);
    assert.deepEqual(await client[name]([], model), []);
  });

test("places count as JavaScript's strings do", { skip }, async () => {
  const text = "🙂🙂 ask ida in rome";
  const { words, entities } = await client.tag(text, { model: "tag" });
  assert.deepEqual(words.map(({ start, end }) => text.slice(start, end)), words.map((word) => word.text));
  for (const { start, end, text: found } of entities) assert.equal(text.slice(start, end), found);
  const context = "🙂🙂 we saw 25 cats 🙂";
  const { answer, start, end, n_best } = await client.answer({ question: "how many?", context }, { model: "answer" });
  if (start !== null) assert.equal(context.slice(start, end), answer);
  assert.ok(n_best.length);
  for (const one of n_best) assert.equal(context.slice(one.start, one.end), one.answer);
});

test("vectors, cosines and orders are Python's", { skip }, async () => {
  const { texts, embedded, pairs, cosines, order } = vectors;
  const model = { model: "near" };
  const found = await client.embed(texts, model);
  assert.ok(found[0] instanceof Float32Array);
  near(found.map((one) => [...one]), embedded);
  near([...(await client.embed(texts[1], model))], embedded[1]);
  near(await client.similarity(pairs, model), cosines);
  near(await client.similarity(pairs.map(([anchor, positive]) => ({ anchor, positive })), model), cosines);
  const ranked = await client.rerank(texts[0], texts.slice(1), { ...model, top_n: 2 });
  assert.deepEqual(ranked.map(({ index }) => index), order.slice(0, 2));
  assert.equal(ranked[0].document, texts.slice(1)[order[0]]);
  assert.ok(ranked[0].score >= ranked[1].score);
});

test("what is written is what Python writes, whole and in pieces, by three routes", { skip }, async () => {
  const how = { model: "chat", temperature: 0 };
  const whole = await client.chat(HI, how);
  assert.equal(whole.text, written.chat);
  assert.equal(whole.model, "chat");
  assert.match(whole.request_id, /^req_/);
  assert.ok(whole.usage.completion_tokens > 1);
  assert.equal((await client.chat(HI[0].content, how)).text, written.chat);
  const responded = await client.respond(HI[0].content, how);
  assert.equal(responded.text, written.chat);
  assert.deepEqual(responded.usage, whole.usage);
  assert.equal((await client.complete("Once upon", { ...how, max_tokens: 8 })).text, written.complete);
  const streams = {
    [written.chat]: [client.stream(HI, how), client.stream_response(HI[0].content, how)],
    [written.complete]: [client.stream_completion("Once upon", { ...how, max_tokens: 8 })],
  };
  for (const [text, ways] of Object.entries(streams))
    for (const stream of ways) {
      const pieces = [];
      for await (const piece of stream) pieces.push(piece);
      assert.ok(pieces.length > 2);
      assert.equal(pieces.join(""), text);
      const reply = await stream.reply;
      assert.equal(reply.text, text);
      assert.ok(reply.usage.prompt_tokens > 1);
    }
  const { request_id } = await client.stream(HI, how).reply;
  assert.deepEqual(await client.stream(HI, how).reply.then((reply) => ({ ...reply, request_id })), { ...whole, request_id });
});

test("options do what they say", { skip }, async () => {
  const cut = await client.respond(HI[0].content, { model: "chat", temperature: 0, max_tokens: 2 });
  assert.equal(cut.finish_reason, "length");
  const two = await client.chat(HI, { model: "chat", n: 2, temperature: 0, logprobs: true, top_logprobs: 1, max_tokens: 3 });
  assert.equal(two.choices.length, 2);
  assert.equal(two.choices[0].logprobs.length, 3);
  assert.equal(Object.keys(two.choices[0].logprobs[0].top_logprobs).length, 1);
  const likely = await client.complete("Once upon", { model: "chat", temperature: 0, logprobs: 1, max_tokens: 2 });
  assert.ok(likely.choices[0].logprobs[0].logprob <= 0);
  const drawn = { model: "chat", temperature: 1, seed: 5 };
  assert.equal((await client.chat(HI, drawn)).text, (await client.chat(HI, drawn)).text);
  const stopped = await client.chat(HI, { model: "chat", temperature: 0, stop: written.chat.slice(5, 8) });
  assert.equal(stopped.text, written.chat.slice(0, 5));
  assert.equal((await client.chat(HI, { model: "chat", temperature: 0, extra: { max_tokens: 1 } })).finish_reason, "length");
  assert.ok((await client.classify("good ".repeat(400), { model: "classify", truncate: true })).label);
});

test("a demanded tool is called, whole and in a stream, by two routes", { skip: skip || (!has.tools && "needs llguidance") }, async () => {
  const parameters = {
    type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"], additionalProperties: false,
  };
  const how = { model: "tools", tool_choice: "required", max_tokens: 60 };
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const flat = [{ type: "function", name: "weather", parameters }];
  const replies = [
    await client.chat("Hello", { ...how, tools }), await client.stream("Hello", { ...how, tools }).reply,
    await client.respond("Hello", { ...how, tools: flat }), await client.stream_response("Hello", { ...how, tools: flat }).reply,
  ];
  for (const { tool_calls, finish_reason } of replies) {
    assert.equal(finish_reason, "tool_calls");
    assert.equal(tool_calls[0].name, "weather");
    assert.ok(["Paris", "Rome"].includes(JSON.parse(tool_calls[0].arguments).city));
  }
});

test("the server tells of its models and of itself", { skip }, async () => {
  assert.equal(await client.health(), "ready");
  const models = await client.models();
  assert.deepEqual(models.map(({ id }) => id).sort(), Object.keys(has.models).sort());
  assert.equal((await client.model("classify")).task, "text-classification");
});

test("golden rows give what they gave, of models that answer and that write", { skip: skip || (!has.golden && "no such route") }, async () => {
  for (const name of ["classify", "tag", "answer", "near", "translate", "summarize"]) {
    const found = await client.verify({ model: name });
    assert.ok(found.rows > 0 && found.largest <= found.tolerance, JSON.stringify(found));
    const before = asked.size;
    assert.equal(await client.verify({ model: name }), found);
    assert.equal(asked.size, before);
  }
});

test("refusals have their kind, status and code", { skip }, async () => {
  const refused = (promise, kind, status, code) =>
    assert.rejects(promise, (error) => {
      assert.equal(error.constructor, kind, String(error));
      assert.deepEqual([error.status, error.code], [status, code]);
      assert.match(error.request_id, /^req_/);
      return true;
    });
  await refused(client.classify("a", { model: "none" }), UsageError, 404, "model_not_found");
  await refused(client.stream(HI, { model: "none" }).reply, UsageError, 404, "model_not_found");
  await refused(client.chat(HI, { model: "chat", logit_bias: { 1: 2 } }), UsageError, 400, "unsupported_parameter");
  await refused(client.complete("a ".repeat(5000), { model: "chat" }), TooLongError, 400, "context_length_exceeded");
  await refused(client.classify("good ".repeat(400), { model: "classify" }), TooLongError, 400, "context_length_exceeded");
  await refused(client.classify({ words: "a" }, { model: "classify" }), UsageError, 400, "invalid_value");
});

async function cancelled() {
  const page = await (await fetch(`${url}/metrics`)).text();
  return Number(/llmasos_cancelled_total\{model="writer"\} (\S+)/.exec(page)?.[1] ?? 0);
}

test("who leaves ends the work at the server", { skip }, async () => {
  const how = { model: "writer", temperature: 0, max_tokens: 1900 };
  const leaves = [
    async () => {
      for await (const _ of client.stream_completion("a good day", how)) break;
    },
    async () => {
      const stream = client.stream_completion("a good day", how);
      await stream[Symbol.asyncIterator]().next();
      stream.close();
      await assert.rejects(stream.reply, BrokenOffError);
    },
    async () => {
      const stop = new AbortController();
      setTimeout(() => stop.abort(), 150);
      await assert.rejects(client.complete("a good day", { ...how, signal: stop.signal }), { name: "AbortError" });
    },
    () => assert.rejects(client.complete("a good day", { ...how, timeout: 0.15 }), { name: "OverdueError" }),
  ];
  for (const [number, leave] of leaves.entries()) {
    const before = await cancelled();
    await leave();
    const until = Date.now() + 60_000;
    while ((await cancelled()) === before && Date.now() < until) await new Promise((done) => setTimeout(done, 20));
    assert.equal(await cancelled(), before + 1, `way ${number + 1}`);
  }
});
