/** Sentence similarity: texts as vectors of length 1, whose cosine says how close they are in meaning. */

import type { TextTokenizer } from "../tokenizer.js";
import { text, type Example, type Matrix, type Task } from "./base.js";

/** Two texts. */
export type PairRow = readonly [string, string] | { anchor: string; positive: string };

/** Pairs of texts, embedded apart; the answer is their cosine, -1 to 1. */
export class SentenceSimilarity implements Task<PairRow, number> {
  readonly tag = "sentence-similarity";
  readonly output = "embedding";
  private readonly group: number;

  constructor(
    settings: any,
    private readonly tokenizer: TextTokenizer,
    private readonly longest: number,
  ) {
    this.group = settings.layout === "triplets" ? 3 : 2;
  }

  encode(rows: readonly PairRow[]): Example[] {
    return rows.map((row, i) => {
      const pair = "anchor" in row ? [row.anchor, row.positive] : row;
      const encoded = [0, 1].map((k) => this.tokenizer.single(text(pair[k], `text ${k + 1} of pair ${i + 1}`), this.longest));
      const sequences = encoded.map(({ ids }) => ({ ids }));
      if (this.group > 2) sequences.push({ ids: sequences[0].ids.slice(0, 1) }); // as in Python: the wrong partner's place
      return { row: i, sequences, cut: encoded[0].cut + encoded[1].cut };
    });
  }

  decode(_rows: readonly PairRow[], _examples: readonly Example[], outputs: readonly Matrix[][]): number[] {
    return outputs.map(([one, other]) => cosine(one.data, other.data));
  }
}

/** Single texts, as vectors of length 1. */
export class TextEmbedding implements Task<string, Float32Array> {
  readonly tag = "sentence-similarity";
  readonly output = "embedding";

  constructor(
    private readonly tokenizer: TextTokenizer,
    private readonly longest: number,
  ) {}

  encode(rows: readonly string[]): Example[] {
    return rows.map((row, i) => {
      const { ids, cut } = this.tokenizer.single(text(row, `text ${i + 1}`), this.longest);
      return { row: i, sequences: [{ ids }], cut };
    });
  }

  decode(_rows: readonly string[], _examples: readonly Example[], outputs: readonly Matrix[][]): Float32Array[] {
    return outputs.map(([{ data }]) => {
      const length = Math.max(Math.hypot(...data), 1e-12);
      return data.map((value) => value / length);
    });
  }
}

/** Return the cosine of two vectors, to six digits. */
export function cosine(one: Float32Array, other: Float32Array): number {
  const product = one.reduce((sum, value, i) => sum + value * other[i], 0);
  const found = product / Math.max(Math.hypot(...one) * Math.hypot(...other), 1e-12);
  return Math.round(Math.min(1, Math.max(-1, found)) * 1e6) / 1e6;
}
