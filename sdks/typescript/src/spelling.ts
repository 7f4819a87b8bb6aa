/**
 * Turn tokens into text as they come: whole characters only, and never a part of what is a stop string.
 *
 * As `generation/writer.py`: a few tokens are always decoded together with those before them, and what ends in a broken
 * character waits.
 */

import type { TextTokenizer } from "./tokenizer.js";

const BROKEN = "\ufffd";

/** The text of one answer. */
export class Spelling {
  text = "";
  /** Whether a stop string came. */
  stopped = false;
  private readonly tokens: number[] = [];
  private prefix = 0; // tokens decoded for context
  private read = 0; // tokens whose text is known
  private told = 0; // characters given away

  constructor(
    private readonly tokenizer: TextTokenizer,
    private readonly stop: readonly string[],
  ) {}

  /** Take a token; return the text that became certain. */
  push(token: number): string {
    this.tokens.push(token);
    const [before, now] = this.decoded();
    if (now.length <= before.length || now.endsWith(BROKEN)) return "";
    this.append(now.slice(before.length));
    [this.prefix, this.read] = [this.read, this.tokens.length];
    return this.certain(this.stopped ? 0 : this.held());
  }

  /** End the text, whatever is still open; return what had not been given away. */
  finish(): string {
    if (!this.stopped && this.read < this.tokens.length) {
      const [before, now] = this.decoded();
      this.append(now.slice(before.length));
      this.read = this.tokens.length;
    }
    return this.certain(0);
  }

  private decoded(): [before: string, now: string] {
    const tokens = this.tokens.slice(this.prefix);
    return [this.tokenizer.decode(tokens.slice(0, this.read - this.prefix)), this.tokenizer.decode(tokens)];
  }

  private append(text: string): void {
    const begin = Math.max(0, this.text.length - Math.max(0, ...this.stop.map((word) => word.length)));
    this.text += text;
    const found = this.stop.map((word) => this.text.indexOf(word, begin)).filter((at) => at >= 0);
    if (!found.length) return;
    this.text = this.text.slice(0, Math.min(...found));
    this.stopped = true;
  }

  /** Return how many characters at the end may be the beginning of a stop string. */
  private held(): number {
    const longest = Math.max(0, ...this.stop.map((word) => word.length));
    for (let size = Math.min(longest - 1, this.text.length); size > 0; size--)
      if (this.stop.some((word) => word.startsWith(this.text.slice(-size)))) return size;
    return 0;
  }

  private certain(held: number): string {
    const until = Math.max(this.told, this.text.length - held);
    const piece = this.text.slice(this.told, until);
    this.told = until;
    return piece;
  }
}
