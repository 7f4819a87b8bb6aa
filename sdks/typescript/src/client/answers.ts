/** What a server answers, under the names that it has in Python. */

import type { Answer } from "../tasks/answering.js";
import type { Tagged } from "../tasks/tagging.js";

/** A model of a server; of one that is not open yet, no more than its name. */
export interface ServedModel {
  id: string;
  /** What it was tuned for; null where it has no task. */
  task?: string | null;
  writes?: boolean;
  embeds?: boolean;
  /** The most tokens that it takes. */
  max_model_len?: number;
  /** Whether its golden rows were compared when it was opened. */
  checked?: boolean;
  [more: string]: unknown;
}

/** A text that the model wrote; `tokens` counts them. */
export interface Written {
  text: string;
  tokens: number;
  finish_reason: string;
}

/** A document by how close it is to a query: its place among those that were sent, and the cosine. */
export interface Ranked {
  index: number;
  score: number;
  document: string;
}

/** A tool that the model calls; `arguments` is JSON, as the model wrote it. */
export interface CalledTool {
  id: string;
  name: string;
  arguments: string;
}

/** A token, the logarithm of its probability, and the likeliest tokens at its place with theirs. */
export interface TokenLogprob {
  token: string;
  logprob: number;
  top_logprobs: Record<string, number>;
}

/** One of several answers. */
export interface Choice {
  index: number;
  text: string;
  tool_calls: CalledTool[];
  /** Why it ended: "stop", "length", "tool_calls", ... */
  finish_reason: string | null;
  /** Null unless asked for. */
  logprobs: TokenLogprob[] | null;
}

/** How many tokens were read and written. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

/** What a model wrote: the first answer, and all of them under `choices`. */
export interface Reply extends Omit<Choice, "index" | "logprobs"> {
  choices: Choice[];
  /** Who wrote it, as the server calls it. */
  model: string;
  /** Null where the server does not tell. */
  usage: Usage | null;
  /** By which the server's log knows it. */
  request_id?: string;
}

/** A model of a server that answers as it did when it was saved. */
export interface ServerVerified {
  model: string;
  /** Changes with the model's files, its engine and its precision. */
  version: string;
  task: string;
  /** How many golden rows were compared. */
  rows: number;
  /** The largest difference of a number, and what there may be. */
  largest: number;
  tolerance: number;
}

/**
 * Return a task's answer with places as JavaScript counts them, in UTF-16: a server counts characters.
 *
 * @param row what was asked: the context of an answer stands there.
 */
export function placed<Found>(found: Found, row: unknown): Found {
  if (typeof found !== "object" || found === null) return found;
  if ("entities" in found) {
    const tagged = found as unknown as Tagged;
    const at = counting(tagged.text);
    return { ...found, words: tagged.words.map(at), entities: tagged.entities.map(at) };
  }
  if ("n_best" in found) {
    const at = counting((row as any)?.context);
    return { ...at(found as unknown as Answer), n_best: (found.n_best as any[]).map(at) } as Found;
  }
  return found;
}

type Place = { start: number | null; end: number | null };

/** Return what moves places in a text. */
function counting(text: unknown): <One extends Place>(one: One) => One {
  if (typeof text !== "string" || !/[\u{10000}-\u{10ffff}]/u.test(text)) return (one) => one;
  const units = [0]; // before each character
  for (const character of text) units.push(units[units.length - 1] + character.length);
  const moved = (place: number | null): number | null => (place === null ? null : units[place]);
  return (one) => ({ ...one, start: moved(one.start), end: moved(one.end) });
}
