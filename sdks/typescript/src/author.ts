/** A model that writes: prompts as tokens, checked against its limit, and answers that come token by token. */

import { ParityError, UsageError } from "./errors.js";
import type { Golden } from "./golden.js";
import type { Engine, Next } from "./runtime.js";
import { chosen, lawful, Random, type Forbidden, type Sampling } from "./sampling.js";
import { Spelling } from "./spelling.js";
import type { ChatTemplate, Message } from "./template.js";
import type { TextTokenizer } from "./tokenizer.js";
import { same } from "./words.js";

/** A text that is gone on with, or a conversation that is answered. */
export type Prompt = string | readonly Message[];

/** How to write; names and defaults are those of Python. */
export interface GenerateOptions {
  /** Longest answer in tokens; up to 256, as far as the model's limit leaves room, if not given. */
  max_new_tokens?: number;
  /** The same, as `Client` and OpenAI's clients call it. */
  max_tokens?: number;
  /** 0 (if not given) takes the likeliest token; above, tokens are drawn, more and more freely. */
  temperature?: number;
  /** Draw from the likeliest tokens that hold this share of probability. */
  top_p?: number;
  /** Draw from so many likeliest tokens; 0 from all. */
  top_k?: number;
  /** Draw from tokens that are at least this share as likely as the likeliest. */
  min_p?: number;
  /** Above 1 makes tokens that were there already less likely. */
  repetition_penalty?: number;
  /** What draws are made from: the same seed draws the same, here and in Python. */
  seed?: number;
  /** Texts that end an answer; they are no part of it. */
  stop?: string | readonly string[];
  /** Ends the writing, which then throws the signal's reason. */
  signal?: AbortSignal;
}

/** What a model wrote. */
export interface Generation {
  /** Without special tokens, and without the stop string that ended it. */
  text: string;
  tokens: number[];
  /** "stop": the model ended, or a stop string came; "length": there was no room for more. */
  finish_reason: "stop" | "length";
  /** How many tokens the model read first. */
  prompt_tokens: number;
}

/** `prompts.json`: what Python makes of texts and conversations (null of one that is refused), and reads in the tokens. */
export interface Prompts {
  prompts?: { prompt: Prompt; rendered?: string | null; ids: number[]; text: string }[];
}

export class Author {
  private readonly ends: ReadonlySet<number>;

  constructor(
    golden: Golden,
    private readonly tokenizer: TextTokenizer,
    private readonly template: ChatTemplate | undefined,
    private readonly limit: number,
    private readonly forbidden: Forbidden,
  ) {
    this.ends = new Set(golden.ends);
  }

  /**
   * Compare what is made here of golden rows and prompts with what Python makes of them.
   *
   * @throws ParityError: other texts or other tokens.
   */
  check(golden: Golden, known: Prompts): void {
    golden.rows.forEach((row, i) => {
      const messages: Message[] = row.messages ?? [{ role: "user", content: row.prompt }];
      this.compare(`golden row ${i + 1}`, this.tokens(messages), golden.examples[i].ids[0]);
    });
    known.prompts?.forEach(({ prompt, rendered, ids, text }, i) => {
      const what = `prompt ${i + 1} of prompts.json`;
      if (typeof prompt === "string") this.compare(what, this.tokenizer.single(prompt, Infinity).ids, ids);
      else if (this.renderedOrNull(prompt) !== rendered)
        throw new ParityError(`the chat template makes another text of ${what} than in Python`, HINT);
      else if (rendered !== null) this.compare(what, this.tokens(prompt), ids);
      if (this.tokenizer.decode(ids) !== text)
        throw new ParityError(`the tokens of ${what} are another text than in Python`, HINT);
    });
  }

  /** Return a prompt as tokens. @throws UsageError: it is none, or the template refuses it. */
  tokens(prompt: Prompt): number[] {
    if (typeof prompt !== "string") return this.tokenizer.plain(this.rendered(prompt));
    const { ids } = this.tokenizer.single(prompt, Infinity);
    // some tokenizers end every text, and after its end a text does not go on
    return ids.length > 1 && this.ends.has(ids[ids.length - 1]) ? ids.slice(0, -1) : ids;
  }

  /**
   * Write; yield texts as they become certain, and return the whole.
   *
   * @throws UsageError: wrong options, or a prompt that does not fit. The signal's reason: it was aborted.
   */
  async *write(engine: Engine, prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<string, Generation, void> {
    const { how, stop, seed, signal, most } = checked(options);
    const read = this.tokens(prompt);
    const room = this.room(read.length, most);
    const spelling = new Spelling(this.tokenizer, stop);
    const random = new Random(seed);
    const tokens: number[] = [];
    let next = await this.read(engine, read, signal);
    try {
      for (;;) {
        signal?.throwIfAborted();
        const scores = lawful(next.logits, [...read, ...tokens], how.repetition_penalty, this.forbidden, this.ends);
        const token = chosen(scores, how, random);
        const ended = this.ends.has(token);
        if (!ended) tokens.push(token);
        let text = ended ? "" : spelling.push(token);
        const reason = ended || spelling.stopped ? "stop" : tokens.length >= room ? "length" : undefined;
        if (reason) text += spelling.finish();
        if (text) yield text;
        if (reason) return { text: spelling.text, tokens, finish_reason: reason, prompt_tokens: read.length };
        await breath();
        signal?.throwIfAborted();
        next = await engine.next([token], next.past);
      }
    } finally {
      next.past.release();
    }
  }

  /** Read a prompt, piece by piece. */
  private async read(engine: Engine, ids: number[], signal?: AbortSignal): Promise<Next> {
    let next: Next | undefined;
    for (let at = 0; at < ids.length; at += READ) {
      if (signal?.aborted) next?.past.release();
      signal?.throwIfAborted();
      next = await engine.next(ids.slice(at, at + READ), next?.past);
      await breath();
    }
    return next!;
  }

  private rendered(messages: readonly Message[]): string {
    if (!Array.isArray(messages)) throw new UsageError(`a prompt is ${typeof messages}`, "a text, or messages");
    if (!this.template) throw new UsageError("this model has no chat template", "the whole prompt as a text");
    return this.template.render(messages);
  }

  private renderedOrNull(messages: readonly Message[]): string | null {
    try {
      return this.rendered(messages);
    } catch (error) {
      if (error instanceof UsageError) return null;
      throw error;
    }
  }

  private compare(what: string, made: number[], wanted: number[]): void {
    if (same(made, wanted)) return;
    const [here, there] = [made, wanted].map((ids) => ids.slice(0, 12));
    throw new ParityError(`${what} becomes other tokens than in Python: ${here} where ${there} were made`, HINT);
  }

  private room(used: number, most: number | undefined): number {
    const left = this.limit - used;
    if (!used) throw new UsageError("the prompt is empty", "some text");
    if (left < (most ?? 1))
      throw new UsageError(
        `a prompt of ${used} tokens + max_new_tokens=${most ?? 1} > ${this.limit}, the model's limit`,
        left > 0 ? `max_new_tokens=${left}` : "a shorter prompt",
      );
    return most ?? Math.min(256, left);
  }
}

/** Tokens of a prompt that are read at once: for each of them the whole vocabulary is scored. */
const READ = 128;
const HINT = "take the tokenizer files and the chat template of the model itself; if they are, a browser cannot run it yet";

/** Let the page paint, and hear who wants it to stop. */
function breath(): Promise<void> {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel(); // at once, where a timer waits for 4 ms
    port1.onmessage = () => {
      port1.close();
      done();
    };
    port2.postMessage(0);
  });
}

const RANGES: Record<string, [least: number, most: number, isWhole: boolean]> = {
  max_new_tokens: [1, Infinity, true],
  max_tokens: [1, Infinity, true],
  temperature: [0, Infinity, false],
  top_p: [1e-6, 1, false],
  top_k: [0, Infinity, true],
  min_p: [0, 1, false],
  repetition_penalty: [0.01, Infinity, false],
  seed: [0, Number.MAX_SAFE_INTEGER, true],
};

interface Checked {
  how: Sampling;
  stop: string[];
  seed: number;
  signal?: AbortSignal;
  most?: number;
}

function checked({ stop = [], signal, ...numbers }: GenerateOptions): Checked {
  for (const [name, value] of Object.entries(numbers)) {
    if (!(name in RANGES))
      throw new UsageError(`there is no option ${name}`, [...Object.keys(RANGES), "stop", "signal"].join(", "));
    const [least, most, isWhole] = RANGES[name];
    if (value === undefined || (value >= least && value <= most && (!isWhole || Number.isSafeInteger(value)))) continue;
    const range = most === Infinity ? `at least ${least}` : `${least} to ${most}`;
    throw new UsageError(`${name}=${value}`, `${isWhole ? "a whole number, " : ""}${range}`);
  }
  const { max_tokens, max_new_tokens: most = max_tokens, temperature = 0, top_p = 1, top_k = 0, min_p = 0, repetition_penalty = 1, seed = 0 } = numbers;
  if (most !== (max_tokens ?? most))
    throw new UsageError(`max_new_tokens=${most} and max_tokens=${max_tokens} are the same option`, "give one of them");
  const idle = Object.entries({ top_p: top_p !== 1, top_k: top_k !== 0, min_p: min_p !== 0 }).find(([, is]) => is);
  if (idle && temperature === 0)
    throw new UsageError(`${idle[0]} does nothing at temperature 0`, "temperature: 0.7, or leave it out");
  const words = typeof stop === "string" ? [stop] : [...stop];
  if (words.some((word) => !word)) throw new UsageError("an empty stop string would end every answer at once", "leave it out");
  return { how: { temperature, top_p, top_k, min_p, repetition_penalty }, stop: words, seed, signal, most };
}
