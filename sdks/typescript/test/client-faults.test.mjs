/** The client against servers that misbehave; it is the file that apps serve to pages, so nothing is built for this. */

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import * as llmasos from "../../../src/llmasos/apps/page/llmasos.js";

const { BrokenOffError, BusyError, Client, OverdueError, ParityError, RemoteError } = llmasos;
const { TooLongError, UnavailableError, UsageError } = llmasos;
const HI = [{ role: "user", content: "Hi" }];
const chunk = (content, finish_reason = null) =>
  `data: ${JSON.stringify({ model: "m", choices: [{ index: 0, delta: { content }, finish_reason }] })}\n\n`;
const COUNTS = `data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n`;
const WHOLE = chunk("a ") + chunk("b") + chunk("", "stop") + COUNTS + "data: [DONE]\n\n";
const answer = (text) => JSON.stringify({ model: "m", choices: [{ index: 0, message: { content: text }, finish_reason: "stop" }] });

/** Serve by a list of what each request gets (the last again and again); `use` takes a client and the requests. */
async function against(steps, use, options = {}) {
  const asked = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const part of request) body += part;
    const step = steps[Math.min(asked.length, steps.length - 1)];
    asked.push({ method: request.method, url: request.url, headers: request.headers, body: body && JSON.parse(body), response });
    await step(response, request);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const url = `http://127.0.0.1:${server.address().port}`;
  try {
    return await use(new Client({ url, model: "m", ...options }), asked, url);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

const says = (status, body, headers = {}) => (response) =>
  response.writeHead(status, headers).end(typeof body === "string" ? body : JSON.stringify(body));
const refuses = (status, code, headers = {}, param = null) =>
  says(status, { error: { message: `no: ${code}`, type: "x", param, code } }, { "x-request-id": "req_1", ...headers });
const streams = (...parts) => async (response) => {
  response.writeHead(200, { "Content-Type": "text/event-stream", "x-request-id": "req_1" });
  for (const part of parts) {
    response.write(part);
    await new Promise((done) => setTimeout(done, 5)); // so that each arrives alone
  }
  response.end();
};
const breaks = (...parts) => async (response) => {
  response.writeHead(200, { "x-request-id": "req_1" });
  for (const part of parts) response.write(part);
  setTimeout(() => response.destroy(), 20);
};
const hangs = () => {};

async function read(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces;
}

const fails = async (promise, kind, check = {}) =>
  assert.rejects(promise, (error) => {
    assert.equal(error.constructor, kind, String(error));
    assert.equal(llmasos[error.name], kind, "its name is that of its class");
    for (const [name, wanted] of Object.entries(check))
      wanted instanceof RegExp ? assert.match(`${error[name]}`, wanted) : assert.deepEqual(error[name], wanted, name);
    return true;
  });

// -- streams ------------------------------------------------------------------------------------------

test("pieces come as they are, and the reply when they have ended", () =>
  against([streams(WHOLE)], async (client, asked) => {
    const stream = client.stream(HI, { temperature: 0, signal: new AbortController().signal, extra: { top_k: 3 } });
    assert.equal(asked.length, 0, "nothing is asked before somebody reads");
    assert.deepEqual(await read(stream), ["a ", "b"]);
    assert.equal(stream.text, "a b");
    assert.deepEqual(await stream.reply, {
      text: "a b", tool_calls: [], finish_reason: "stop", model: "m", request_id: "req_1",
      usage: { prompt_tokens: 3, completion_tokens: 2 },
      choices: [{ index: 0, text: "a b", tool_calls: [], finish_reason: "stop", logprobs: null }],
    });
    const sent = { messages: HI, temperature: 0, top_k: 3, model: "m", stream: true, stream_options: { include_usage: true } };
    assert.deepEqual(asked[0].body, sent);
    assert.equal((await client.stream("Hi", { system: "Be kind." }).reply).text, "a b", "a reply needs no loop");
    assert.deepEqual(asked[1].body.messages, [{ role: "system", content: "Be kind." }, ...HI]);
    assert.throws(() => stream[Symbol.asyncIterator](), UsageError);
  }));

test("bytes may be cut anywhere, lines end by CR, LF or both, comments and other fields are passed over", () => {
  const text = chunk("早上好 ") + ": still here\n\nid: 3\nretry: 5\n" + chunk("🙂 é") + chunk("", "stop") + "data:[DONE]\n\n";
  const forms = [text, text.replaceAll("\n", "\r\n"), text.replaceAll("\n", "\r"), `\ufeff${text}`];
  const bytes = forms.flatMap((form) => [1, 7].map((size) => cut(Buffer.from(form), size)));
  return against(bytes.map((parts) => breathless(parts)), async (client) => {
    for (const _ of bytes) assert.deepEqual(await read(client.stream(HI)), ["早上好 ", "🙂 é"]);
  });
});

const cut = (bytes, size) => Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size));
const breathless = (parts) => async (response) => {
  response.socket.setNoDelay(true);
  response.writeHead(200);
  for (const part of parts) {
    response.write(part);
    await new Promise((done) => setImmediate(done));
  }
  response.end();
};

test("data of several lines is one event", () =>
  against([streams(chunk("a", "stop").replace('"choices"', '\ndata: "choices"'))], async (client) =>
    assert.deepEqual(await read(client.stream(HI)), ["a"])));

test("a server that goes away in the middle: what had come is in the error", async () => {
  const gone = { text: "a b", request_id: "req_1", status: 200 };
  const cases = [breaks(chunk("a "), chunk("b")), streams(chunk("a "), chunk("b")), streams(chunk("a "), chunk("b"), "data: {")];
  for (const step of cases)
    await against([step], async (client, asked) => {
      const stream = client.stream(HI);
      await fails(read(stream), BrokenOffError, gone);
      await fails(stream.reply, BrokenOffError, gone);
      assert.equal(stream.text, "a b");
      assert.equal(asked.length, 1, "a stream that has begun is not begun again");
    });
});

test("an error in a stream has the server's code", async () => {
  const chat = `event: error\ndata: {"error":{"message":"too late","code":"timeout"}}\n\n`;
  const check = { text: "a ", code: "timeout", message: /too late/ };
  await against([streams(chunk("a "), chat)], (client) => fails(read(client.stream(HI)), BrokenOffError, check));
  const delta = `event: x\ndata: {"type":"response.output_text.delta","delta":"a "}\n\n`;
  const wrong = `event: error\ndata: {"type":"error","code":"timeout","message":"too late"}\n\n`;
  await against([streams(delta, wrong)], (client) => fails(read(client.stream_response("Hi")), BrokenOffError, check));
  await against([streams(chunk("a "), "data: no json\n\n")], (client) => fails(read(client.stream(HI)), BrokenOffError));
});

test("what breaks off behind the end of an answer is no harm", () =>
  against([breaks(chunk("a"), chunk("", "stop"))], async (client) => {
    const stream = client.stream(HI);
    assert.deepEqual(await read(stream), ["a"]);
    assert.equal((await stream.reply).finish_reason, "stop");
  }));

test("calls of tools come in parts, several answers side by side", () => {
  const of = (choices) => `data: ${JSON.stringify({ model: "m", choices })}\n\n`;
  const call = (index, id, name, given) => ({ index, id, function: { name, arguments: given } });
  const parts = [
    of([{ index: 1, delta: { content: "two" }, finish_reason: "length" }]),
    of([{ index: 0, delta: { tool_calls: [call(0, "c1", "add", '{"a"')] } }]),
    of([{ index: 0, delta: { tool_calls: [call(0, null, "", ": 1}"), call(1, "c2", "now", "{}")] } }]),
    of([{ index: 0, delta: {}, finish_reason: "tool_calls", logprobs: { content: [{ token: "x", logprob: -1, top_logprobs: [] }] } }]),
    "data: [DONE]\n\n",
  ];
  return against([streams(...parts)], async (client) => {
    const { tool_calls, finish_reason, choices } = await client.stream(HI, { n: 2 }).reply;
    assert.deepEqual(tool_calls, [{ id: "c1", name: "add", arguments: '{"a": 1}' }, { id: "c2", name: "now", arguments: "{}" }]);
    assert.equal(finish_reason, "tool_calls");
    assert.deepEqual(choices[0].logprobs, [{ token: "x", logprob: -1, top_logprobs: {} }]);
    assert.deepEqual([choices[1].text, choices[1].finish_reason], ["two", "length"]);
  });
});

// -- ends ---------------------------------------------------------------------------------------------

const left = (response) => new Promise((done) => response.on("close", done));

test("who leaves the loop, closes or aborts ends the request", async () => {
  const leave = {
    loop: async (stream) => {
      for await (const _ of stream) break;
    },
    close: async (stream) => {
      await stream[Symbol.asyncIterator]().next();
      stream.close();
    },
  };
  for (const [name, end] of Object.entries(leave))
    await against([(response) => response.writeHead(200).write(chunk("a"))], async (client, asked) => {
      const stream = client.stream(HI);
      await end(stream);
      await left(asked[0].response);
      await fails(stream.reply, BrokenOffError, { text: "a" });
      assert.ok(name);
    });
  await against([(response) => response.writeHead(200).write(chunk("a"))], async (client, asked) => {
    const stop = new AbortController();
    const stream = client.stream(HI, { signal: stop.signal });
    const reading = (async () => {
      for await (const _ of stream) stop.abort(new Error("enough"));
    })();
    await assert.rejects(reading, /enough/);
    await left(asked[0].response);
    await assert.rejects(stream.reply, /enough/);
  });
});

test("whole answers are aborted and overdue too, and not asked again", () =>
  against([hangs], async (client, asked) => {
    const stop = new AbortController();
    setTimeout(() => stop.abort(), 30);
    await assert.rejects(client.chat(HI, { signal: stop.signal }), { name: "AbortError" });
    await assert.rejects(client.chat(HI, { signal: stop.signal }), { name: "AbortError" });
    assert.equal(asked.length, 1, "what is aborted already is not asked");
    await fails(client.chat(HI, { timeout: 0.05 }), OverdueError, { message: /0\.05 s/ });
    await fails(client.models({ timeout: 0.05 }), OverdueError);
    assert.equal(asked.length, 3);
    await left(asked[2].response);
  }));

test("the time of a stream counts anew with each piece, and not while nobody reads", () => {
  const slow = async (response) => {
    response.writeHead(200);
    for (const part of [chunk("a"), chunk("b"), chunk("c")]) {
      response.write(part);
      await new Promise((done) => setTimeout(done, 60));
    }
    setTimeout(() => response.end(chunk("", "stop")), 3000);
  };
  return against([slow], async (client) => {
    const pieces = [];
    const stream = client.stream(HI, { timeout: 0.6 });
    const reading = (async () => {
      for await (const piece of stream) {
        pieces.push(piece);
        if (piece === "a") await new Promise((done) => setTimeout(done, 800));
      }
    })();
    await fails(reading, OverdueError);
    assert.deepEqual(pieces, ["a", "b", "c"]);
  });
});

// -- again --------------------------------------------------------------------------------------------

test("too much to do: asked again, as often as told, when the server says", async () => {
  const busy = refuses(429, "queue_full", { "Retry-After": "0" });
  await against([busy, refuses(503, "unavailable"), says(200, answer("ok"))], async (client, asked) => {
    assert.equal((await client.chat(HI)).text, "ok");
    assert.equal(asked.length, 3);
  });
  await against([busy, streams(WHOLE)], async (client, asked) => {
    assert.deepEqual(await read(client.stream(HI)), ["a ", "b"]);
    assert.equal(asked.length, 2);
  });
  await against([busy], async (client, asked) => {
    await fails(client.chat(HI), BusyError, { status: 429, code: "queue_full", retry_after: 0, request_id: "req_1" });
    assert.equal(asked.length, 2);
  }, { retries: 1 });
  await against([refuses(503, "unavailable", { "Retry-After": "7" })], async (client, asked) => {
    await fails(client.chat(HI, { timeout: 5 }), UnavailableError, { retry_after: 7 });
    assert.equal(asked.length, 1, "there is no time left to come again");
  });
  await against([refuses(429, "queue_full", { "Retry-After": "1" }), says(200, answer("ok"))], async (client) => {
    const began = performance.now();
    await client.chat(HI);
    assert.ok(performance.now() - began > 950);
  });
});

test("what may have begun to write is not written twice, and what only reads is asked again", async () => {
  const drops = (response) => response.destroy();
  await against([drops, says(200, answer("ok"))], async (client, asked) => {
    await fails(client.chat(HI), RemoteError, { status: undefined });
    assert.equal(asked.length, 1);
  });
  await against([drops, says(200, { data: [{ id: "m" }] })], async (client, asked) => {
    assert.deepEqual(await client.models(), [{ id: "m" }]);
    assert.equal(asked.length, 2);
  });
  await against([drops, says(200, { result: { label: "a" } })], async (client, asked) => {
    assert.equal((await client.classify("x")).label, "a");
    assert.equal(asked.length, 2);
  });
  await against([refuses(502, null), says(200, answer("ok"))], async (client) => assert.equal((await client.chat(HI)).text, "ok"));
  await against([refuses(504, "timeout"), says(200, answer("no"))], (client) =>
    fails(client.chat(HI), OverdueError, { status: 504, code: "timeout" }));
});

test("nobody is there: tried again, then said", async () => {
  const url = await against([hangs], async (_, __, url) => url);
  let tried = 0;
  const fetch = (...words) => {
    tried++;
    return globalThis.fetch(...words);
  };
  const client = new Client({ url, model: "m", retries: 2, fetch });
  await fails(client.chat(HI), RemoteError, { message: /cannot be reached: ECONNREFUSED[^]*hint: is it running/ });
  assert.equal(tried, 3);
  const stop = new AbortController();
  setTimeout(() => stop.abort(), 20);
  await assert.rejects(new Client({ url, retries: 50 }).models({ signal: stop.signal }), { name: "AbortError" });
});

// -- refusals -----------------------------------------------------------------------------------------

test("each refusal is an error of its kind", async () => {
  const kinds = [
    [400, "invalid_value", UsageError], [400, "context_length_exceeded", TooLongError], [404, "model_not_found", UsageError],
    [413, "request_too_large", UsageError], [422, null, UsageError], [401, "invalid_api_key", UsageError],
    [403, "origin_not_allowed", UsageError], [429, "queue_full", BusyError], [503, "unavailable", UnavailableError],
    [504, "timeout", OverdueError], [500, "internal_error", RemoteError],
  ];
  for (const [status, code, kind] of kinds)
    await against([refuses(status, code, {}, "stop")], async (client) => {
      const check = { status, code: code ?? undefined, request_id: "req_1", param: "stop", message: /no: / };
      await fails(client.chat(HI), kind, check);
      await fails(read(client.stream(HI)), kind, check);
    }, { retries: 0 });
});

test("what makes no sense is a RemoteError that shows it", async () => {
  const cases = [["<html>hello", /<html>hello/], ["", /nothing/], ["{}", /\{\}/], [`{"choices":[]}`, /choices/]];
  for (const [body, message] of cases)
    await against([says(200, body)], (client) => fails(client.chat(HI), RemoteError, { status: 200, message }));
  for (const body of ["<html>bad gateway", `{"error":"bad gateway"}`, `{"detail":"bad gateway"}`])
    await against([says(418, body)], (client) => fails(client.chat(HI), UsageError, { message: /bad gateway/ }));
});

test("keys, addresses, names and numbers", async () => {
  await against([says(200, { data: [{ id: "first" }] }), says(200, answer("ok"))], async (_, asked, url) => {
    for (const form of [`${url}/v1`, `${url}/v1/`, `${url}/`, new URL(url)]) assert.equal(new Client({ url: form }).url, url);
    const client = new Client({ url: `${url}/v1`, key: "lm-secret" });
    await client.chat("Hi");
    assert.deepEqual(asked.map((one) => one.url), ["/v1/models", "/v1/chat/completions"]);
    assert.equal(asked[1].body.model, "first", "without a name the first is asked");
    assert.equal(asked[1].headers.authorization, "Bearer lm-secret");
    await client.chat("Hi", { model: "other" });
    assert.equal(asked[2].body.model, "other");
    process.env.LLMASOS_URL = `${url}/v1`;
    process.env.LLMASOS_API_KEY = "lm-env";
    await new Client().chat("Hi", { model: "other" });
    assert.equal(asked[3].headers.authorization, "Bearer lm-env");
    delete process.env.LLMASOS_URL;
    delete process.env.LLMASOS_API_KEY;
    assert.equal(new Client().url, "http://127.0.0.1:8000");
    await fails(client.chat("Hi", { temperature: Number.NaN }), UsageError, { message: /temperature=NaN/ });
  });
  for (const wrong of [{ url: "nowhere" }, { url: "ftp://a" }, { timeout: 0 }, { timeout: Number.NaN }, { retries: -1 }])
    assert.throws(() => new Client(wrong), UsageError, JSON.stringify(wrong));
});

// -- golden rows --------------------------------------------------------------------------------------

const golden = (version, score) => says(200, {
  model: "m", version, task: "text-classification", tolerance: 0.01,
  rows: [{ path: "/v1/classify", body: { inputs: "x" }, expected: { result: { label: "a", score } } }],
});

test("golden rows are compared once for each version, and a model that differs is refused", async () => {
  const found = says(200, { model: "m", result: { label: "a", score: 0.5 } });
  await against([golden("1", 0.505), found, golden("1", 0.505), golden("2", 0.5), found], async (client, asked) => {
    const first = await client.verify();
    assert.deepEqual({ ...first, largest: 0 }, { model: "m", version: "1", task: "text-classification", rows: 1, largest: 0, tolerance: 0.01 });
    assert.ok(Math.abs(first.largest - 0.005) < 1e-9);
    assert.equal(await client.verify(), first);
    assert.equal(asked.length, 3, "the rows are asked once");
    assert.equal(asked[0].url, "/v1/golden?model=m");
    assert.deepEqual(asked[1].body, { inputs: "x", model: "m" });
    assert.equal((await client.verify()).version, "2");
  });
  await against([golden("1", 0.6), found], (client) => fails(client.verify(), ParityError, { message: /golden row 1, answer\.result\.score differs by 0\.100/ }));
  const other = says(200, { model: "m", result: { label: "b", score: 0.5 } });
  await against([golden("1", 0.5), other], (client) => fails(client.verify(), ParityError, { message: /label is something else/ }));
  const away = says(200, { model: "m", version: "1", tolerance: 0, rows: [{ path: "@elsewhere/", body: {}, expected: {} }] });
  await against([away], (client) => fails(client.verify(), RemoteError, { message: /@elsewhere/ }));
});
