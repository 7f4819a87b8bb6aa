/** What a model wrote, from the JSON of three routes: whole, and as the events of a stream add up to it. */

import type { Choice, Reply, TokenLogprob, Usage } from "./answers.js";
import type { Reader } from "./transport.js";

/** An answer of `/v1/chat/completions`. */
export const readChat: Reader<Reply> = (told, request_id) => {
  const choices = told.choices.map(({ index, message, finish_reason, logprobs }: any) => ({
    index,
    text: message.content ?? "",
    tool_calls: (message.tool_calls ?? []).map((call: any) => ({ id: call.id, ...call.function })),
    finish_reason: finish_reason ?? null,
    logprobs: logprobs?.content?.map(chances) ?? null,
  }));
  return reply(choices, told, request_id);
};

function chances({ token, logprob, top_logprobs = [] }: any): TokenLogprob {
  return { token, logprob, top_logprobs: Object.fromEntries(top_logprobs.map((one: any) => [one.token, one.logprob])) };
}

/** An answer of `/v1/completions`, whose chances are lists side by side. */
export const readCompletion: Reader<Reply> = (told, request_id) => {
  const choices = told.choices.map(({ index, text, finish_reason, logprobs }: any) => ({
    index,
    text,
    tool_calls: [],
    finish_reason: finish_reason ?? null,
    logprobs:
      logprobs?.tokens.map((token: string, i: number) => ({
        token,
        logprob: logprobs.token_logprobs[i],
        top_logprobs: logprobs.top_logprobs?.[i] ?? {},
      })) ?? null,
  }));
  return reply(choices, told, request_id);
};

/** An answer of `/v1/responses`. */
export const readResponse: Reader<Reply> = (told, request_id) => {
  const items: any[] = told.output;
  const parts = items.filter(({ type }) => type === "message").flatMap(({ content }) => content);
  const calls = items.filter(({ type }) => type === "function_call");
  const choice = {
    index: 0,
    text: parts.map(({ text = "" }) => text).join(""),
    tool_calls: calls.map(({ call_id, name, arguments: given }) => ({ id: call_id, name, arguments: given })),
    finish_reason: told.status === "incomplete" ? "length" : calls.length ? "tool_calls" : "stop",
    logprobs: null,
  };
  const { usage } = told;
  const counts = usage && { prompt_tokens: usage.input_tokens, completion_tokens: usage.output_tokens };
  return reply([choice], { ...told, usage: counts }, request_id);
};

function reply(choices: Choice[], told: any, request_id: string | undefined): Reply {
  choices.sort((one, other) => one.index - other.index);
  const { text, tool_calls, finish_reason } = choices[0];
  const { model = "", usage } = told;
  const counts: Usage | null = usage
    ? { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens }
    : null;
  return { text, tool_calls, finish_reason, choices, model, usage: counts, request_id };
}

/** An answer that grows by events. */
export interface Growing {
  /** Whether its end has come. */
  ended: boolean;
  /** Take an event; return the text that it adds to the first answer. */
  take(event: any): string;
  /** Return the whole. */
  whole(request_id?: string): Reply;
}

/** The chunks of a chat, gathered to what the route answers without a stream. */
export class GrowingChat implements Growing {
  ended = false;
  protected readonly choices = new Map<number, any>();
  protected readonly told: any = {};
  protected readonly read: Reader<Reply> = readChat;

  take(event: any): string {
    for (const name of ["model", "usage"]) this.told[name] = event[name] || this.told[name];
    let text = "";
    for (const chunk of event.choices ?? []) {
      const { index, finish_reason, logprobs } = chunk;
      const choice = this.choices.get(index) ?? { index };
      this.choices.set(index, choice);
      const more = this.grow(choice, chunk);
      if (index === 0) text += more;
      choice.finish_reason = finish_reason ?? choice.finish_reason;
      for (const [name, rows] of Object.entries<any>(logprobs ?? {}))
        (choice.logprobs ??= {})[name] = [...(choice.logprobs[name] ?? []), ...(rows ?? [])];
    }
    const all = [...this.choices.values()];
    this.ended ||= all.length > 0 && all.every((choice) => choice.finish_reason); // some servers end without a word
    return text;
  }

  whole(request_id?: string): Reply {
    return this.read({ ...this.told, choices: [...this.choices.values()] }, request_id);
  }

  /** Add a chunk to a choice; return the text that it brings. */
  protected grow(choice: any, { delta }: any): string {
    const message = (choice.message ??= { content: "", tool_calls: [] });
    const text: string = delta?.content ?? "";
    message.content += text;
    for (const { index, id, function: given } of delta?.tool_calls ?? []) {
      const call = (message.tool_calls[index] ??= { id: "", function: { name: "", arguments: "" } });
      call.id = id || call.id;
      for (const name of ["name", "arguments"]) call.function[name] += given?.[name] ?? "";
    }
    return text;
  }
}

/** Completions. */
export class GrowingCompletion extends GrowingChat {
  protected override readonly read = readCompletion;

  protected override grow(choice: any, { text = "" }: any): string {
    choice.text = (choice.text ?? "") + text;
    return text;
  }
}

/** A response, whose last event holds the whole. */
export class GrowingResponse implements Growing {
  ended = false;
  private told: any;

  take(event: any): string {
    if (event.type === "response.output_text.delta") return event.delta;
    if (["response.completed", "response.incomplete"].includes(event.type)) {
      this.told = event.response;
      this.ended = true;
    }
    return "";
  }

  whole(request_id?: string): Reply {
    return readResponse(this.told, request_id);
  }
}
