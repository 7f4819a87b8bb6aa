/** What the page asks and shows for each task. Texts of users and of the model only ever become text nodes. */

import type { LocalModel } from "../src/index.js";

/** A field of the form. */
export interface Field {
  name: string;
  label: string;
  kind: "short" | "long" | "line";
}

export interface View {
  title: string;
  lead: string;
}

/** A view with a form, and an answer below it. */
export interface Form extends View {
  verb: string;
  fields: Field[];
  /** Return what the fields hold for a golden row. */
  example(row: any): Record<string, string>;
  /** Ask the model, and return what is shown. */
  ask(model: LocalModel, values: Record<string, string>): Promise<Node[]>;
}

const forms: Record<string, (settings: any) => Form> = {
  "text-classification": (settings) => ({
    title: "Text classification",
    lead: `Gives a text ${settings.multi_label ? "its labels" : "one label"} of ${settings.labels.length}.`,
    verb: "Classify",
    fields: [
      { name: "text", label: settings.pairs ? "First text" : "Text", kind: settings.pairs ? "short" : "long" },
      ...(settings.pairs ? [{ name: "text_pair", label: "Second text", kind: "short" } as const] : []),
    ],
    example: (row) => row,
    async ask(model, values) {
      const row = settings.pairs ? { text: values.text, text_pair: values.text_pair } : values.text;
      const found = await model.classify(row);
      const said = found.labels ? found.labels.join(", ") || "no label" : `${found.label}`;
      const order = Object.entries(found.scores).sort(([, one], [, other]) => other - one);
      const bars = element("div", "bars");
      for (const [label, score] of order.slice(0, 10)) bars.append(...bar(label, score));
      return [answered(said, found.labels ? "" : percent(found.score)), bars, ...cut(found.truncated)];
    },
  }),
  "token-classification": () => ({
    title: "Token classification",
    lead: "Finds entities in a text.",
    verb: "Find entities",
    fields: [{ name: "text", label: "Text", kind: "long" }],
    example: (row) => ({ text: row.text ?? row.tokens.join(" ") }),
    async ask(model, values) {
      const found = await model.tag(values.text);
      const shown = element("p", "text");
      let at = 0;
      for (const { label, start, end, score } of found.entities) {
        const mark = element("mark", "", found.text.slice(start, end));
        mark.title = percent(score);
        mark.append(element("b", "", label));
        shown.append(found.text.slice(at, start), mark);
        at = end;
      }
      shown.append(found.text.slice(at));
      return [answered(count(found.entities.length, "entity", "entities")), shown];
    },
  }),
  "question-answering": () => ({
    title: "Question answering",
    lead: "Finds the answer to a question in a text.",
    verb: "Answer",
    fields: [
      { name: "context", label: "Text", kind: "long" },
      { name: "question", label: "Question", kind: "line" },
    ],
    example: (row) => row,
    async ask(model, values) {
      const found = await model.answer({ question: values.question, context: values.context });
      if (found.start === null || found.end === null)
        return [answered("No answer in this text", percent(found.score)), ...cut(found.truncated)];
      const shown = element("p", "text");
      shown.append(
        values.context.slice(0, found.start), element("mark", "", found.answer), values.context.slice(found.end),
      );
      return [answered(found.answer, percent(found.score)), shown, ...cut(found.truncated)];
    },
  }),
  "sentence-similarity": () => ({
    title: "Sentence similarity",
    lead: "Tells how close two texts are in meaning.",
    verb: "Compare",
    fields: [
      { name: "anchor", label: "First text", kind: "short" },
      { name: "positive", label: "Second text", kind: "short" },
    ],
    example: (row) => row,
    async ask(model, values) {
      const [score] = await model.similarity([[values.anchor, values.positive]]);
      const [vector] = await model.embed([values.anchor]);
      const bars = element("div", "bars");
      bars.append(...bar("cosine", score, score.toFixed(3)));
      const note = element("p", "note", `From vectors of ${vector.length} numbers, one for each text.`);
      return [answered(score.toFixed(3), "1 is the same meaning"), bars, note];
    },
  }),
};

/** Of models that write. */
const chats: Record<string, View> = {
  "text-generation": { title: "Text generation", lead: "Answers what you write, or goes on with it." },
  "code-generation": { title: "Code generation", lead: "Writes the program that you describe." },
  preference: { title: "Chat", lead: "Answers what you write, or goes on with it." },
};

export function viewOf(model: LocalModel): View | Form {
  return forms[model.task]?.(model.manifest.task) ?? chats[model.task];
}

export function element<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag, kind = "", text?: string,
): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function percent(share: number): string {
  const value = 100 * share;
  return `${value > 0 && value < 0.1 ? "<\u00a00.1" : value.toFixed(1)}\u00a0%`;
}

function answered(text: string, score = ""): HTMLElement {
  const made = element("p", "answer", text);
  if (score) made.append(" ", element("small", "", score));
  return made;
}

function bar(label: string, score: number, shown = percent(score)): HTMLElement[] {
  const meter = element("meter");
  meter.value = Math.max(0, score);
  meter.title = shown;
  return [element("span", "", label), meter, element("span", "number", shown)];
}

function count(number: number, one: string, many: string): string {
  return `${number || "No"} ${number === 1 ? one : many}`;
}

function cut(tokens?: number): HTMLElement[] {
  return tokens ? [element("p", "note", `The text is longer than the model takes: its last ${tokens} tokens were not read.`)] : [];
}
