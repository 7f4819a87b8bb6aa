/**
 * Texts as token ids and back, as transformers makes them in Python: what is cut, what stands around texts and pairs, and
 * which characters a token stands for. The pieces themselves come from @huggingface/tokenizers.
 */

import { Tokenizer } from "@huggingface/tokenizers";

import { BundleError, UsageError } from "./errors.js";
import { same, type Place } from "./words.js";

/** Token ids of one input of the model; types only where a second text begins. */
export interface Sequence {
  ids: number[];
  types?: number[];
}

/** A text as tokens, and how many of them were cut from its end. */
export interface Cut extends Sequence {
  cut: number;
}

export class TextTokenizer {
  /** Fills short sequences of a batch. */
  readonly padId: number;
  /** The token that stands for a whole sequence, where there is one. */
  readonly clsId?: number;
  /** Stands for a word of which nothing is left. */
  readonly nothingId: number;
  /** Special tokens around a text. */
  readonly before: number[];
  readonly after: number[];
  private readonly inner: Tokenizer;
  private readonly pairs: { before: Sequence; middle: Sequence; after: Sequence; types: [number, number] };
  private readonly added: RegExp | null;
  private readonly continues: string;
  private readonly unknown?: string;
  private readonly isBytes: boolean;
  private readonly isLeft: boolean;

  /** @param content `tokenizer.json`. @param config `tokenizer_config.json`. */
  constructor(content: any, config: any) {
    try {
      this.inner = new Tokenizer(content, config);
    } catch (error) {
      throw new BundleError(`tokenizer.json cannot be opened: ${(error as Error).message}`, "export the model again");
    }
    this.padId = this.named(config.pad_token) ?? 0;
    this.clsId = this.named(config.cls_token);
    const names = [config.unk_token, config.mask_token, config.eos_token, config.pad_token];
    this.nothingId = names.map((name) => this.named(name)).find((id) => id !== undefined) ?? 0;
    this.isLeft = config.truncation_side === "left";
    const a = this.plain("a");
    const whole = this.inner.encode("a").ids;
    const at = found(whole, a, 0);
    this.before = whole.slice(0, at);
    this.after = whole.slice(at + a.length);
    this.pairs = this.aroundPairs(a);
    this.added = between((content.added_tokens ?? []).map((token: any) => token.content));
    const model = content.model ?? {};
    this.continues = model.type === "WordPiece" ? (model.continuing_subword_prefix ?? "##") : "";
    this.unknown = model.unk_token ?? undefined;
    const steps = content.pre_tokenizer?.pretokenizers ?? [content.pre_tokenizer];
    this.isBytes = steps.some((step: any) => step?.type === "ByteLevel");
  }

  /** Return the ids of a text alone, without special tokens. */
  plain(text: string): number[] {
    return this.inner.encode(text, { add_special_tokens: false }).ids;
  }

  /** Return the ids of a text with special tokens, at most `longest` of them. */
  single(text: string, longest: number): Cut {
    const ids = this.plain(text);
    const kept = this.shortened(ids, Math.max(0, longest - this.before.length - this.after.length));
    return { ids: [...this.before, ...kept, ...this.after], cut: ids.length - kept.length };
  }

  /** Return tokens as text, without special ones. */
  decode(ids: readonly number[]): string {
    return ids.length ? this.inner.decode([...ids], { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";
  }

  /** Return two texts as one sequence of at most `longest` tokens; the longer text is cut first. */
  pair(first: string, second: string, longest: number): Cut {
    const { before, middle, after, types } = this.pairs;
    const parts = [this.plain(first), this.plain(second)];
    const room = longest - before.ids.length - middle.ids.length - after.ids.length;
    const lengths = longestFirst(parts[0].length, parts[1].length, Math.max(0, room));
    const kept = parts.map((part, i) => this.shortened(part, lengths[i]));
    const sides = kept.map((part, i) => ({ ids: part, types: part.map(() => types[i]) }));
    const all = [before, sides[0], middle, sides[1], after];
    return {
      ids: all.flatMap((part) => part.ids),
      types: all.flatMap((part) => part.types ?? []),
      cut: parts[0].length + parts[1].length - kept[0].length - kept[1].length,
    };
  }

  /** Return question and context as tokens, apart, and what stands around them. */
  sides(question: string, context: string): {
    question: number[]; context: number[]; places: Place[]; around: TextTokenizer["pairs"];
  } {
    const { ids, places } = this.placed(context);
    return { question: this.plain(question), context: ids, places, around: this.pairs };
  }

  /**
   * Return the tokens of a text, and which characters each stands for.
   *
   * The normalised text is made again character by character, so that each of its characters has a place in the text;
   * then pieces are found in it one after the other. Both are compared with what the tokenizer itself makes.
   *
   * @throws UsageError: they differ, and an answer could not be shown in its text.
   */
  placed(text: string): { ids: number[]; places: Place[] } {
    const ids: number[] = [];
    const places: Place[] = [];
    let at = 0;
    for (const section of this.added ? text.split(this.added) : [text]) {
      if (this.added?.test(section)) {
        ids.push(...this.plain(section));
        places.push([at, at + section.length]);
      } else if (section) {
        for (const piece of this.pieces(section, at)) {
          ids.push(piece.id);
          places.push(piece.place);
        }
      }
      at += section.length;
    }
    if (!same(ids, this.plain(text))) throw this.lost(text);
    return { ids, places };
  }

  private *pieces(text: string, at: number): Generator<{ id: number; place: Place }> {
    const { inner } = this;
    const { characters, places } = this.normalised(text);
    const known = (token: string): number => inner.token_to_id(token) ?? (inner.model as any).unk_token_id ?? 0;
    const spot = (from: number, to: number): Place => {
      const inside = places.slice(from, to).filter(([start, end]) => end > start);
      return inside.length ? [at + inside[0][0], at + inside[inside.length - 1][1]] : [at, at];
    };
    const words: string[] = inner.pre_tokenizer ? (inner.pre_tokenizer as any)(characters, {}) : [characters];
    if (this.isBytes) {
      const owners = bytesOf(characters);
      const begun = words.join("").length - owners.length; // a space that was put before the text
      let next = -begun;
      for (const token of (inner.model as any)(words) as string[]) {
        const owned = owners.slice(Math.max(0, next), (next += token.length));
        yield { id: known(token), place: owned.length ? spot(owned[0], owned[owned.length - 1] + 1) : [at, at] };
      }
      return;
    }
    let next = 0;
    for (const word of words) {
      const marked = word.replaceAll("\u2581", " ");
      next = skipped(characters, next, marked);
      const end = next + (characters.startsWith(marked, next) ? marked : marked.trimStart()).length;
      const tokens: string[] = (inner.model as any)([word]);
      for (const [i, token] of tokens.entries()) {
        const bare = i && this.continues && token.startsWith(this.continues) ? token.slice(this.continues.length) : token;
        const piece = bare.replaceAll("\u2581", " ");
        const start = next;
        if (characters.startsWith(piece, next)) next += piece.length;
        else if (characters.startsWith(piece.trimStart(), next)) next += piece.trimStart().length;
        else if (token === this.unknown && tokens.length === 1) next = end;
        else throw this.lost(text);
        // a mark put before the first word stands at its beginning
        yield { id: known(token), place: spot(start, Math.max(next, start + 1)) };
      }
    }
  }

  /** Return the normalised text, and the place of each of its UTF-16 units in the text. */
  private normalised(text: string): { characters: string; places: Place[] } {
    const whole = this.inner.normalizer ? (this.inner.normalizer as any)(text) : text;
    for (const cut of [/[^]/gu, /\P{M}\p{M}*|\p{M}+/gu]) {
      const places: Place[] = [];
      let characters = "";
      for (const { 0: one, index } of text.matchAll(cut)) {
        const made: string = this.inner.normalizer ? (this.inner.normalizer as any)(one) : one;
        characters += made;
        for (let i = 0; i < made.length; i++) places.push([index, index + one.length]);
      }
      const kept = spaced(characters, whole);
      if (kept) return { characters: whole, places: kept.map((i) => (i < 0 ? [0, 0] : places[i])) };
    }
    throw this.lost(text);
  }

  private lost(text: string): UsageError {
    const shown = text.length > 60 ? `${text.slice(0, 57)}...` : text;
    return new UsageError(
      `the characters that the tokens of ${JSON.stringify(shown)} stand for cannot be told`,
      "leave out unusual characters",
    );
  }

  private aroundPairs(a: number[]): TextTokenizer["pairs"] {
    const whole = this.inner.encode("a", { text_pair: "a", return_token_type_ids: true });
    const { ids } = whole;
    const types = whole.token_type_ids ?? []; // none where nothing is put around texts
    const start = found(ids, a, 0);
    const other = found(ids, a, start + a.length);
    const part = (from: number, to: number): Sequence => ({ ids: ids.slice(from, to), types: types.slice(from, to) });
    return {
      before: part(0, start),
      middle: part(start + a.length, other),
      after: part(other + a.length, ids.length),
      types: [types[start] ?? 0, types[other] ?? 1],
    };
  }

  private shortened(ids: number[], length: number): number[] {
    return this.isLeft ? ids.slice(Math.max(0, ids.length - length)) : ids.slice(0, length);
  }

  private named(token: any): number | undefined {
    const content = typeof token === "string" ? token : token?.content;
    return content === undefined ? undefined : this.inner.token_to_id(content);
  }
}

/** Return how much of two texts is kept, as Hugging Face's `longest_first` decides. */
export function longestFirst(first: number, second: number, room: number): [number, number] {
  if (first + second <= room) return [first, second];
  const [short, long] = first > second ? [second, first] : [first, second];
  let kept: [number, number] = [short, short > room ? short : Math.max(short, room - short)];
  if (kept[0] + kept[1] > room) kept = [Math.floor(room / 2), Math.floor(room / 2) + (room % 2)];
  kept[1] = Math.min(kept[1], long);
  return first > second ? [kept[1], kept[0]] : kept;
}

/** Match the places of `characters` to those of `whole`, which may have other spaces; null where it has others. */
function spaced(characters: string, whole: string): number[] | null {
  const kept: number[] = [];
  let at = 0;
  for (const one of whole) {
    while (at < characters.length && !characters.startsWith(one, at) && isSpace(characters[at])) at++;
    if (characters.startsWith(one, at)) {
      for (let i = 0; i < one.length; i++) kept.push(at++);
    } else if (isSpace(one)) {
      kept.push(-1); // put there by the normaliser
    } else return null;
  }
  return [...characters.slice(at)].every(isSpace) ? kept : null;
}

function isSpace(character: string): boolean {
  return character === "\u2581" || !character.trim();
}

/** Return where a word begins behind spaces that belong to none. */
function skipped(characters: string, at: number, word: string): number {
  while (at < characters.length && !characters.startsWith(word, at) && isSpace(characters[at])) at++;
  return at;
}

/** Return for each byte of a text in UTF-8 which UTF-16 unit it belongs to. */
function bytesOf(text: string): number[] {
  const owners: number[] = [];
  let at = 0;
  for (const character of text) {
    const bytes = new TextEncoder().encode(character).length;
    for (let i = 0; i < bytes; i++) owners.push(Math.min(at + i, at + character.length - 1));
    at += character.length;
  }
  return owners;
}

/** Return what parts a text at any of these tokens, the longest first. */
function between(tokens: string[]): RegExp | null {
  const escaped = tokens
    .filter(Boolean)
    .sort((one, other) => other.length - one.length)
    .map((token) => token.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return escaped.length ? new RegExp(`(${escaped.join("|")})`) : null;
}

function found(ids: number[], part: number[], from: number): number {
  for (let at = from; at + part.length <= ids.length; at++)
    if (same(ids.slice(at, at + part.length), part)) return at;
  return from;
}
