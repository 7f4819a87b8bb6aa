/** What the types of the client allow, and what they refuse; nothing of it runs. */

import { Client, LocalModel, type Model, type Reply, type wire } from "llmasos";

declare const client: Client;
declare const local: LocalModel;
const either: Model[] = [client, local];
const one: Promise<{ label: string | number }> = client.classify("a");
const many: Promise<{ label: string | number }[]> = client.classify(["a", { text: "a", text_pair: "b" }]);
const tool: wire.Tool = { type: "function", function: { name: "add", parameters: {} } };
const reply: Promise<Reply> = client.stream("Hi", { tools: [tool], tool_choice: "auto", extra: { anything: 1 } }).reply;
client.respond("Hi", { max_tokens: 3, instructions: "Be kind." });
either[0].stream([{ role: "user", content: "Hi" }], { max_tokens: 3, temperature: 0 });

// @ts-expect-error: there is no such option
client.chat("Hi", { max_token: 3 });
// @ts-expect-error: a number
client.chat("Hi", { temperature: "0" });
// @ts-expect-error: there is no such role
client.chat([{ role: "robot", content: "Hi" }]);
// @ts-expect-error: a question needs a context
client.answer({ question: "who?" });
// @ts-expect-error: only a server translates
either[0].translate("Hi");
// @ts-expect-error: many answers
const label: string | number = client.classify(["a"]).then(({ label }) => label);
