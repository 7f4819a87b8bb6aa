/** Golden rows: what the model gave or wrote for a few rows where it was exported, and must wherever it runs. */

import { ParityError } from "./errors.js";
import type { Engine } from "./runtime.js";
import type { Example, Task } from "./tasks/base.js";
import { largest } from "./tasks/base.js";
import { same } from "./words.js";

/** `golden.json`. */
export interface Golden {
  format: number;
  max_length: number;
  rows: any[];
  /** Of a model that writes, `outputs` has a line a token: how unlikely it was, and whether it was the likeliest. */
  examples: { ids: number[][]; outputs: number[][]; answer?: number[] }[];
  /** Tokens that end an answer. */
  ends?: number[];
}

/** Most tokens of a golden answer. */
const WRITTEN = 16;

/** How far outputs are from the golden ones: the largest difference, and its share of the largest golden output. */
export interface Difference {
  largest: number;
  relative: number;
  /** The row with the largest difference, from 0. */
  row: number;
  /** Of a model that writes: the share of the answers that are the same to the last token. */
  written?: number;
}

/**
 * Encode the golden rows as this tokenizer does.
 *
 * @throws ParityError: it makes other tokens of a row.
 */
export function encoded(golden: Golden, task: Task<any, unknown>): Example[] {
  const examples = task.encode(golden.rows);
  if (examples.length !== golden.examples.length)
    throw new ParityError(`the golden rows make ${examples.length} examples here, and made ${golden.examples.length}`);
  for (const [i, example] of examples.entries()) {
    const made = sorted(example).map(({ ids }) => ids);
    const wanted = golden.examples[i].ids;
    if (made.length === wanted.length && made.every((ids, k) => same(ids, wanted[k]))) continue;
    const at = Math.max(0, made.findIndex((ids, k) => !same(ids, wanted[k] ?? [])));
    throw new ParityError(
      `the tokenizer makes other tokens of golden row ${example.row + 1}: ` +
        `${made[at].slice(0, 12)} where ${(wanted[at] ?? []).slice(0, 12)} were made`,
      "take the tokenizer files of the model itself; if they are, this tokenizer cannot be used in a browser yet",
    );
  }
  return examples;
}

/**
 * Run the golden rows, each alone, and compare.
 *
 * @throws ParityError: an output has another shape.
 */
export async function compared(golden: Golden, examples: readonly Example[], engine: Engine): Promise<Difference> {
  let worst: Difference = { largest: 0, relative: 0, row: 0 };
  const outputs = golden.examples.map((one) => one.outputs.flat());
  const scale = outputs.reduce((most, values) => values.reduce((all, value) => Math.max(all, Math.abs(value)), most), 1e-30);
  for (const [i, example] of examples.entries()) {
    const found = (await engine.run(sorted(example))).flatMap(({ data }) => Array.from(data));
    if (found.length !== outputs[i].length)
      throw new ParityError(`golden row ${example.row + 1} gives ${found.length} numbers, and gave ${outputs[i].length}`);
    let largest = 0;
    found.forEach((value, k) => {
      const apart = Math.abs(value - outputs[i][k]);
      largest = Math.max(largest, Number.isFinite(apart) ? apart : Infinity);
    });
    if (largest > worst.largest) worst = { largest, relative: largest / scale, row: example.row };
  }
  return worst;
}

/** Write the golden answers again, each alone, and compare their tokens and how likely these were. */
export async function rewritten(golden: Golden, engine: Engine): Promise<Difference> {
  const examples = golden.examples.map((one, row) => ({ ...one, row, key: `${one.ids[0]}` }));
  const scale = Math.max(1e-30, ...examples.flatMap(({ outputs }) => outputs.flat().map(Math.abs)));
  let worst: Difference = { largest: 0, relative: 0, row: 0 };
  const alike = new Map<string, boolean>();
  for (const { ids, answer = [], outputs, row, key } of examples) {
    if (alike.has(key)) continue; // the same prompt again
    let { logits, past } = await engine.next(ids[0]);
    let [isSame, apart] = [true, 0];
    for (const [place, token] of answer.entries()) {
      isSame &&= largest(logits) === token;
      const difference = Math.abs(surprise(logits, token) - outputs[place][0]);
      apart = Math.max(apart, Number.isFinite(difference) ? difference : Infinity);
      if (place + 1 < WRITTEN) ({ logits, past } = await engine.next([token], past));
    }
    if (answer.length < WRITTEN) isSame &&= golden.ends!.includes(largest(logits));
    past.release();
    alike.set(key, isSame);
    if (apart > worst.largest) worst = { largest: apart, relative: apart / scale, row };
  }
  const written = examples.filter(({ key }) => alike.get(key)).length / examples.length;
  return { ...worst, written };
}

/** Return minus the logarithm of a token's probability. */
function surprise(logits: Float32Array, token: number): number {
  const top = logits[largest(logits)];
  return Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0)) + top - logits[token];
}

/** The sequences of an example as golden rows have them, the longest first. */
function sorted(example: Example): Example["sequences"] {
  return [...example.sequences].sort((one, other) => other.ids.length - one.ids.length);
}
