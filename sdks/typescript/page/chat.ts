/** The view of a model that writes: a conversation, or a text that is gone on with. */

import type { GenerateOptions, LocalModel, Message } from "../src/index.js";
import { element } from "./views.js";

interface Places {
  form: HTMLElement;
  result: HTMLElement;
  error: HTMLElement;
  /** Show an error. */
  refused(error: unknown): void;
}

/** Options that can be set: name, label, value at first, attributes. */
const OPTIONS: [name: "max_new_tokens" | "temperature" | "top_p" | "seed", label: string, value: string, step: string][] = [
  ["max_new_tokens", "Longest answer, in tokens", "256", "1"],
  ["temperature", "Temperature: 0 takes the likeliest token", "0", "0.1"],
  ["top_p", "Draw from this share of probability", "1", "0.05"],
  ["seed", "Seed of draws", "0", "1"],
];

/** Let the user write, and the model answer. */
export function chat(model: LocalModel, { form, result, error, refused }: Places): void {
  const messages: Message[] = [];
  let writing: AbortController | undefined;
  const text = element("textarea", "short");
  text.id = "text";
  const label = element("label", "", "Message");
  label.htmlFor = text.id;
  const [ask, stop, example, begin] = [
    button("ask", "Send"), button("stop", "Stop"), button("example", "Example", "plain"), button("new", "New chat", "plain"),
  ];
  const actions = element("div", "actions");
  actions.append(ask, stop, example, begin);
  const { settings, goesOn, read } = options();
  form.append(label, text, actions, settings);
  form.before(result, error); // what was said stands above what is asked next
  text.addEventListener("keydown", (event) => {
    const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing && matchMedia("(pointer: fine)").matches;
    if (!sends) return;
    event.preventDefault();
    if (!writing) ask.click();
  });
  stop.addEventListener("click", () => writing?.abort());
  const anew = (): void => {
    messages.length = 0;
    result.replaceChildren();
    idle();
  };
  begin.addEventListener("click", anew);
  goesOn.addEventListener("change", anew);
  let next = 0;
  example.addEventListener("click", () => {
    text.value = model.golden.rows[next++ % model.golden.rows.length].prompt;
    ask.click();
  });
  ask.addEventListener("click", async () => {
    error.hidden = true;
    writing = new AbortController();
    idle();
    const asked = text.value;
    const prompt = goesOn.checked ? asked : [...messages, { role: "user", content: asked } as const];
    const [question, answer] = [element("p", "turn user", asked), element("p", "turn model")];
    const note = element("p", "note");
    try {
      const pieces = model.stream(prompt, { ...read(), signal: writing.signal });
      let piece = await pieces.next();
      result.append(question, answer, note);
      const start = performance.now();
      for (; !piece.done; piece = await pieces.next()) {
        answer.append(piece.value);
        result.hidden = false;
        note.scrollIntoView({ block: "nearest" });
      }
      note.textContent = told(piece.value.tokens.length, piece.value.finish_reason, performance.now() - start);
    } catch (reason) {
      if (!writing.signal.aborted) {
        question.remove();
        answer.remove();
        note.remove();
        refused(reason);
      } else if (question.isConnected) note.textContent = "Stopped.";
    }
    if (question.isConnected) {
      text.value = "";
      const said = answer.textContent ?? "";
      if (said.trim()) messages.push({ role: "user", content: asked }, { role: "assistant", content: said });
    }
    writing = undefined;
    idle();
    text.focus({ preventScroll: true });
  });
  idle();
  form.hidden = false;

  /** Show what can be done now. */
  function idle(): void {
    const busy = writing !== undefined;
    ask.disabled = example.disabled = busy;
    stop.hidden = !busy;
    result.hidden = !result.childElementCount;
    begin.hidden = busy || result.hidden;
  }
}

function told(tokens: number, reason: string, milliseconds: number): string {
  const rate = tokens > 1 ? `, ${((1000 * (tokens - 1)) / milliseconds).toFixed(0)} a second` : "";
  const end = reason === "length" ? " There was no room for more." : "";
  return `${tokens} token${tokens === 1 ? "" : "s"}${rate}.${end}`;
}

/** Return the settings, and what reads them. */
function options(): { settings: HTMLElement; goesOn: HTMLInputElement; read: () => GenerateOptions } {
  const settings = element("details");
  const fields = element("div", "fields");
  const inputs = new Map<string, HTMLInputElement>();
  for (const [name, caption, value, step] of OPTIONS) {
    const input = element("input");
    Object.assign(input, { id: name, type: "number", min: "0", step, value, inputMode: "decimal" });
    const label = element("label", "", caption);
    label.htmlFor = name;
    const field = element("div");
    field.append(label, input);
    fields.append(field);
    inputs.set(name, input);
  }
  const goesOn = element("input");
  Object.assign(goesOn, { id: "goes-on", type: "checkbox" });
  const label = element("label", "check");
  label.append(goesOn, " Go on with the text, instead of answering it");
  settings.append(element("summary", "", "Settings"), fields, label);
  const read = (): GenerateOptions => {
    const how = Object.fromEntries([...inputs].map(([name, input]) => [name, input.valueAsNumber])) as GenerateOptions;
    if (!how.temperature) delete how.top_p; // which does nothing then
    return how;
  };
  return { settings, goesOn, read };
}

function button(id: string, text: string, kind = ""): HTMLButtonElement {
  const made = element("button", kind, text);
  made.id = id;
  made.type = "button";
  return made;
}
