/** What a model answers, wherever it runs: here (`LocalModel`) or at a server (`Client`). */

import type { Answer, Question } from "./tasks/answering.js";
import type { Classification, TextRow } from "./tasks/classification.js";
import type { PairRow } from "./tasks/similarity.js";
import type { Tagged } from "./tasks/tagging.js";
import type { Message } from "./template.js";

/** How to write, in words that both know. What is not given is the model's own choice at a server, and Python's here. */
export interface WritingOptions {
  /** The longest answer, in tokens. */
  max_tokens?: number;
  /** 0 takes the likeliest token. */
  temperature?: number;
  top_p?: number;
  seed?: number;
  /** Texts that end an answer; they are no part of it. */
  stop?: string | readonly string[];
  /** Ends the writing, which then throws the signal's reason. */
  signal?: AbortSignal;
}

export interface Model {
  classify(row: TextRow): Promise<Classification>;
  classify(rows: readonly TextRow[]): Promise<Classification[]>;
  tag(text: string): Promise<Tagged>;
  answer(row: Question): Promise<Answer>;
  answer(rows: readonly Question[]): Promise<Answer[]>;
  embed(texts: readonly string[]): Promise<Float32Array[]>;
  similarity(pairs: readonly PairRow[]): Promise<number[]>;
  chat(messages: readonly Message[], options?: WritingOptions): Promise<{ text: string; finish_reason: string | null }>;
  stream(messages: readonly Message[], options?: WritingOptions): AsyncIterable<string>;
  /** Compare with golden rows. @throws ParityError: it is not the model that it was. */
  verify(): Promise<{ rows: number }>;
}
