/**
 * Conversations as the model's own chat template writes them; what it would refuse, drop or forge is refused.
 *
 * See `tasks/_chat_template.py` and `tasks/_conversations.py`, whose prompts these are.
 */

import { Template } from "@huggingface/jinja";

import { BundleError, UsageError } from "./errors.js";

/** A message of a conversation. */
export interface Message {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content: string;
}

/** Roles, and what each may follow; nothing before stands for the beginning. */
const AFTER: Record<string, string[]> = {
  system: [""],
  developer: [""],
  user: ["system", "developer", "assistant", ""],
  assistant: ["user", "tool"],
  tool: ["assistant", "tool"],
};

export class ChatTemplate {
  private readonly template: Template;
  private readonly special: Record<string, string> = {};
  private readonly control: string[];

  /** @param text the template. @param content `tokenizer.json`. @param config `tokenizer_config.json`. */
  constructor(text: string, content: any, config: any) {
    try {
      this.template = new Template(text);
    } catch (error) {
      throw new BundleError(`the chat template cannot be read here: ${(error as Error).message}`, "serve the model instead");
    }
    for (const [name, token] of Object.entries<any>(config))
      if (name.endsWith("_token") && token) this.special[name] = token.content ?? token;
    const added: any[] = (content.added_tokens ?? []).filter((token: any) => token.special && token.content.trim());
    this.control = added.map((token) => token.content);
  }

  /**
   * Return a conversation, and the prompt for an answer.
   *
   * @throws UsageError: it is none, the template refuses it or drops something, or a message holds control tokens.
   */
  render(messages: readonly Message[]): string {
    checkOrder(messages);
    for (const { content } of messages) {
      const control = this.control.find((token) => content.includes(token));
      if (control) throw new UsageError(`a message holds the control token ${control}`, "text without it");
    }
    const text = this.applied(messages, true);
    // what templates drop later on was there once
    const answers = messages.flatMap(({ role }, i) => (role === "assistant" ? [i + 1] : []));
    const texts = [text, ...answers.map((count) => this.applied(messages.slice(0, count), false))];
    for (const { role, content } of messages)
      if (!isInside(content, texts))
        throw new UsageError(`the chat template leaves out a message of role ${role}`, "leave it out, too");
    return text;
  }

  private applied(messages: readonly Message[], asks: boolean): string {
    try {
      return this.template.render({
        ...this.special,
        messages: messages.map((message) => ({ ...message })),
        tools: null,
        documents: null,
        add_generation_prompt: asks,
      });
    } catch (error) {
      throw new UsageError(`the chat template refuses the messages: ${(error as Error).message}`, "messages that it takes");
    }
  }
}

function checkOrder(messages: readonly Message[]): void {
  let before = "";
  for (const { role, content } of messages) {
    if (!(role in AFTER)) throw new UsageError(`role=${JSON.stringify(role)}`, Object.keys(AFTER).join(", "));
    if (typeof content !== "string")
      throw new UsageError(`the content of a message of role ${role} is ${typeof content}`, "a text");
    if (!content.trim() && role !== "tool") throw new UsageError(`a message of role ${role} is empty`, "some text");
    if (!AFTER[role].includes(before)) {
      const follow = AFTER[role].map((name) => name || "at the beginning").join(" or ");
      throw new UsageError(`${role} ${before ? `after ${before}` : "at the beginning"}`, `${role} only after ${follow}`);
    }
    before = role;
  }
  if (before !== "user" && before !== "tool") throw new UsageError("nothing to answer", "a message of the user at the end");
}

/** Say whether a text is in one of these, with other white space or as JSON writes it, too. */
function isInside(content: string, texts: readonly string[]): boolean {
  const forms = [content, JSON.stringify(content).slice(1, -1)].map(squeezed);
  return texts.some((text) => forms.some((form) => squeezed(text).includes(form)));
}

/** Return a text without white space, thinking marks aside: templates trim, and set thoughts apart themselves. */
function squeezed(text: string): string {
  return text.replace(/<\/?think>/g, "").replace(/\s+/g, "");
}
