/** What a task is here: rows as token ids, and outputs of the model as answers. */

import { UsageError } from "../errors.js";
import type { Sequence } from "../tokenizer.js";

/** Numbers in lines of equal width, end to end. */
export interface Matrix {
  data: Float32Array;
  width: number;
}

/** What the model is run on for a row, or for a window over it. */
export interface Example {
  row: number;
  sequences: Sequence[];
  /** Tokens that were cut from the row. */
  cut: number;
  /** What `decode` needs besides. */
  context?: unknown;
}

export interface Task<Row, Answer> {
  readonly tag: string;
  /** What is read of the model's outputs: a line a sequence, a line a token, or their mean. */
  readonly output: "row" | "token" | "embedding";
  /** Turn rows into examples, those of a row one after the other. */
  encode(rows: readonly Row[]): Example[];
  /** Turn the outputs of each sequence of each example into one answer a row. */
  decode(rows: readonly Row[], examples: readonly Example[], outputs: readonly Matrix[][]): Answer[];
}

/** Return a text that can be answered. */
export function text(value: unknown, name: string): string {
  if (typeof value !== "string") throw new UsageError(`${name} is ${typeof value}`, "a string");
  if (!value.trim()) throw new UsageError(`${name} is empty`, "some text");
  return value;
}

/** Return probabilities of logits, in double precision. */
export function softmax(logits: ArrayLike<number>): number[] {
  const values = Array.from(logits);
  const top = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - top));
  const sum = powers.reduce((all, value) => all + value, 0);
  return powers.map((value) => value / sum);
}

export function largest(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
