/** An exported model, whatever runs it: what it reads, what it answers, and whether it is still the same. */

import { DeviceMemoryError, ParityError, UsageError } from "./errors";

/** The files of the export, as far as they are read here. */
export interface Files {
  manifest: {
    task: { tag: string; labels?: (string | number)[]; multi_label?: boolean };
    artifact: { inputs: string[]; longest: number };
  };
  certificate: { model_bytes: number; tolerance: { outputs: number } };
  golden: { examples: { ids: number[][]; outputs: Numbers }[] };
  reader: { before: number[]; after: number[]; examples: { text: string; longest: number; ids: number[] }[] };
}

export type Numbers = number | Numbers[];

/** What runs the model: inputs of one row in, its numbers out. */
export interface Program {
  run(inputs: number[][]): number[];
  close(): void;
}

/** Tokens of a text, with what stands around it. */
export interface Tokenizer {
  ids(text: string): number[];
}

/** A label and its probability. */
export interface Label {
  name: string;
  score: number;
}

/**
 * A model that runs here only if there is memory for it, and that answers only if it makes the same tokens and gives the
 * same numbers as where it was exported.
 */
export class LocalModel {
  /** The largest difference of the golden rows, as a share of the largest number. */
  readonly apart: number;
  private readonly program: Program;

  /**
   * @param bytes memory of the device.
   * @param tokenizer opens the tokenizer.
   * @param open opens the program, after the memory was checked.
   */
  constructor(
    private readonly files: Files,
    bytes: number,
    private readonly tokenizer: Tokenizer,
    open: () => Program,
  ) {
    const needed = files.certificate.model_bytes;
    // how much is free is told to no app on both systems; an app is given about half of a phone
    if (bytes / 2 < needed)
      throw new DeviceMemoryError(`the model needs ${mb(needed)} MB of memory, and half of this device is ${mb(bytes / 2)}`);
    this.checkTokens();
    this.program = open();
    try {
      this.apart = this.verify();
    } catch (error) {
      this.program.close();
      throw error;
    }
  }

  /** What the model is for: "text-classification", "sentence-similarity". */
  get tag(): string {
    return this.files.manifest.task.tag;
  }

  /** Label a text, the likeliest label first; of several labels at once, each with its own probability. */
  classify(text: string): Label[] {
    this.expect("text-classification");
    const logits = this.run(this.ids(text, this.files.manifest.artifact.longest));
    const { labels = [], multi_label } = this.files.manifest.task;
    const scores = multi_label ? logits.map((x) => 1 / (1 + Math.exp(-x))) : softmax(logits);
    return scores.map((score, i) => ({ name: String(labels[i]), score })).sort((a, b) => b.score - a.score);
  }

  /** Return a text as a vector of length 1. */
  embed(text: string): number[] {
    this.expect("sentence-similarity");
    const found = this.run(this.ids(text, this.files.manifest.artifact.longest));
    const length = Math.max(Math.hypot(...found), 1e-12);
    return found.map((x) => x / length);
  }

  /** Return how alike two texts are, from -1 to 1. */
  similarity(one: string, other: string): number {
    const [a, b] = [this.embed(one), this.embed(other)];
    return a.reduce((sum, x, i) => sum + x * (b[i] ?? 0), 0);
  }

  /**
   * Run the golden rows; return the largest difference, as a share of the largest number.
   *
   * @throws ParityError: they give other numbers here.
   */
  verify(): number {
    let [largest, worst, row] = [1e-30, 0, 0];
    this.files.golden.examples.forEach((example, number) => {
      const wanted = [example.outputs].flat(9) as number[];
      const found = example.ids.flatMap((ids) => this.run(ids));
      if (found.length !== wanted.length)
        throw new ParityError(`golden row ${number + 1} gives ${found.length} numbers, and gave ${wanted.length}`);
      wanted.forEach((there, i) => {
        largest = Math.max(largest, Math.abs(there));
        const apart = Math.abs((found[i] ?? NaN) - there);
        if (!(apart <= worst)) [worst, row] = [Number.isNaN(apart) ? Infinity : apart, number];
      });
    });
    const allowed = this.files.certificate.tolerance.outputs;
    if (!(worst / largest <= allowed))
      throw new ParityError(
        `golden row ${row + 1} differs by ${worst}, ${worst / largest} of the largest; ${allowed} is allowed`,
      );
    return worst / largest;
  }

  /** Give the memory back. */
  close(): void {
    this.program.close();
  }

  private run(ids: number[]): number[] {
    return this.program.run(this.files.manifest.artifact.inputs.map((name) => (name === "input_ids" ? ids : ids.map(() => 0))));
  }

  /** The tokens of a text, cut to so many, with what stands around it. */
  private ids(text: string, longest: number): number[] {
    const { before, after } = this.files.reader;
    const whole = this.tokenizer.ids(text);
    const inside = whole.slice(before.length, whole.length - after.length);
    return [...before, ...inside.slice(0, Math.max(0, longest - before.length - after.length)), ...after];
  }

  private checkTokens(): void {
    for (const { text, longest, ids } of this.files.reader.examples) {
      const found = this.ids(text, longest);
      if (found.length !== ids.length || found.some((id, i) => id !== ids[i]))
        throw new ParityError(
          `the tokenizer makes other tokens of "${text.slice(0, 40)}" here: ${found.slice(0, 12)}, not ${ids.slice(0, 12)}`,
        );
    }
  }

  private expect(wanted: string): void {
    if (this.tag !== wanted) throw new UsageError(`this is a model for ${this.tag}, not for ${wanted}`, "take the other function");
  }
}

function softmax(logits: number[]): number[] {
  const most = Math.max(...logits);
  const powers = logits.map((x) => Math.exp(x - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}

function mb(bytes: number): number {
  return Math.floor(bytes / 1e6);
}
