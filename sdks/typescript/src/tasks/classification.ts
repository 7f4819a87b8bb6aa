/** Text classification: one label of two or many, several labels at once, one text or a pair. */

import { UsageError } from "../errors.js";
import type { TextTokenizer } from "../tokenizer.js";
import { largest, softmax, text, type Example, type Matrix, type Task } from "./base.js";

export type Label = string | number;

/** A text, or a pair of texts. */
export type TextRow = string | { text: string; text_pair?: string };

/** The answer for one text. */
export interface Classification {
  /** The most likely label. */
  label: Label;
  /** Its probability. */
  score: number;
  /** The probability of every label. */
  scores: Record<string, number>;
  /** Of a model for several labels at once: those above its threshold. */
  labels?: Label[];
  /** Tokens that the model did not see, since the text is longer than it takes; absent where there are none. */
  truncated?: number;
}

export class TextClassification implements Task<TextRow, Classification> {
  readonly tag = "text-classification";
  readonly output = "row";
  private readonly labels: Label[];

  constructor(
    private readonly settings: any,
    private readonly tokenizer: TextTokenizer,
    private readonly longest: number,
  ) {
    this.labels = settings.labels;
  }

  encode(rows: readonly TextRow[]): Example[] {
    return rows.map((row, i) => {
      const given = typeof row === "string" ? { text: row } : row;
      const first = text(given.text, `text ${i + 1}`);
      const paired = given.text_pair !== undefined && given.text_pair !== null;
      if (paired !== Boolean(this.settings.pairs)) {
        const wanted = this.settings.pairs ? '{ text: "...", text_pair: "..." }' : "one text alone";
        throw new UsageError(`this model was tuned for ${this.settings.pairs ? "pairs" : "single texts"}`, wanted);
      }
      const encoded = paired
        ? this.tokenizer.pair(first, text(given.text_pair, `text_pair ${i + 1}`), this.longest)
        : this.tokenizer.single(first, this.longest);
      return { row: i, sequences: [{ ids: encoded.ids, types: encoded.types }], cut: encoded.cut };
    });
  }

  decode(_rows: readonly TextRow[], examples: readonly Example[], outputs: readonly Matrix[][]): Classification[] {
    return outputs.map(([{ data }], i) => {
      const several = Boolean(this.settings.multi_label);
      const chances = several ? Array.from(data, (logit) => 1 / (1 + Math.exp(-logit))) : softmax(data);
      const best = largest(data);
      return {
        label: this.labels[best],
        score: chances[best],
        scores: Object.fromEntries(this.labels.map((label, k) => [label, chances[k]])),
        ...(several ? { labels: this.labels.filter((_, k) => chances[k] >= this.settings.threshold) } : {}),
        ...(examples[i].cut ? { truncated: examples[i].cut } : {}),
      };
    });
  }
}
