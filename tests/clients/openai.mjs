// Asks a server as programs do that use OpenAI's own package, and prints what it answered as one JSON document.
import OpenAI from "openai";

const [url] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const asked = { model: "chat", messages, temperature: 0 };
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: {
      type: "object",
      properties: { city: { enum: ["Paris", "Rome"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

const found = {};
found.models = [];
for await (const model of client.models.list()) found.models.push(model.id);
found.answer = await client.chat.completions.create(asked);

found.streamed = "";
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  found.streamed += chunk.choices[0]?.delta.content ?? "";
  found.usage = chunk.usage ?? found.usage;
}

const calling = { model: "tools", messages, tools: [weather], tool_choice: "required", max_tokens: 60 };
found.called = (await client.chat.completions.create(calling)).choices[0];
const runner = client.chat.completions.stream(calling);
found.calledInAStream = (await runner.finalChatCompletion()).choices[0];

found.response = (await client.responses.create({ model: "chat", input: "Hello", temperature: 0 })).output_text;
found.events = [];
for await (const event of await client.responses.create({
  model: "chat",
  input: "Hello",
  temperature: 0,
  stream: true,
})) {
  found.events.push(event.type);
}

const vectors = await client.embeddings.create({ model: "near", input: ["a", "b"] });
found.vectors = vectors.data.map((one) => one.embedding.length);

found.errors = [];
for (const [wrong, kind] of [
  [{ logit_bias: { 1: 2 } }, OpenAI.BadRequestError],
  [{ model: "none" }, OpenAI.NotFoundError],
]) {
  try {
    await client.chat.completions.create({ ...asked, ...wrong });
  } catch (error) {
    found.errors.push([error instanceof kind, error.status, error.code, error.param]);
  }
}

const stopped = new AbortController();
try {
  const long = { type: "json_schema", json_schema: { name: "long", schema: { type: "string", minLength: 1500 } } };
  const body = { ...asked, stream: true, response_format: long };
  for await (const _ of await client.chat.completions.create(body, { signal: stopped.signal })) stopped.abort();
  found.aborted = true;
} catch (error) {
  found.aborted = error instanceof OpenAI.APIUserAbortError;
}
console.log(JSON.stringify(found));
