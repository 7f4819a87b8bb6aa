/**
 * Words: found in raw text without a tokenizer, turned into pieces by one, and laid out in windows.
 *
 * The same rules as `tasks/_words.py`, so that a word is the same word wherever the model runs. Places are those of
 * JavaScript's strings (UTF-16).
 */

import type { TextTokenizer } from "./tokenizer.js";

export type Place = [start: number, end: number];

// Han, kana, bopomofo: written without spaces
const ALONE =
  "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff" +
  "\uff66-\uff9f\u{20000}-\u{3ffff}";
// marks that are seen by nobody: they separate nothing and belong to no word
const INVISIBLE = "\u200b\u200e\u200f\\u2028-\u202e\u2060-\u2069\ufeff\u0000-\u001f\u007f-\u009f\u00ad";
const SIGNS =
  "!-/:-@\\[-`\\{-~\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u037e\u0387" +
  "\u055a-\u055f\u0589\u058a\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965" +
  "\u0e2f\u0e5a\u0e5b\u0f04-\u0f12\u104a-\u104f\u1360-\u1368\u17d4-\u17da\u2010-\u2027\u2030-\u205e\u20a0-\u20cf" +
  "\u2190-\u2bff\u2e00-\u2e5d\u3001-\u3004\u3008-\u3020\u3030\u303d\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40" +
  "\uff5b-\uff65\uffe0-\uffee\u{1f000}-\u{1faff}";
const WORD = new RegExp(
  `[${ALONE}${SIGNS}][\\ufe00-\\ufe0f\\u20e3\\u{1f3fb}-\\u{1f3ff}\\u{e0100}-\\u{e01ef}]*` +
    `|[^\\s${ALONE}${SIGNS}${INVISIBLE}]+`,
  "gu",
);
const TOUCHING = new RegExp(`[${ALONE}\u3001\u3002\uff01-\uff60]`, "u");

/** Return where the words of a text begin and end. */
export function splitWords(text: string): Place[] {
  return Array.from(text.matchAll(WORD), (match) => [match.index, match.index + match[0].length]);
}

/** Write words as a text, and say where each is; Chinese and Japanese have no spaces between them. */
export function joined(words: readonly string[]): [string, Place[]] {
  let text = "";
  let last = "";
  const places: Place[] = [];
  for (const word of words) {
    const [first] = word;
    if (last && !(TOUCHING.test(last) && TOUCHING.test(first))) text += " ";
    places.push([text.length, text.length + word.length]);
    text += word;
    last = Array.from(word).at(-1) ?? "";
  }
  return [text, places];
}

/** The sub-words of words, each word tokenised once, as if it stood between others. */
export class Pieces {
  private readonly known = new Map<string, number[]>();
  private readonly space: string;

  constructor(private readonly tokenizer: TextTokenizer) {
    const [plain, behind, together] = ["a", " a", "a a"].map((text) => tokenizer.plain(text));
    const twice = [...plain, ...plain];
    this.space = !same(together, twice) && same(together, [...plain, ...behind]) ? " " : "";
  }

  /** Return the pieces of a word; one of which nothing is left is one unknown token. */
  of(word: string): number[] {
    let ids = this.known.get(word);
    if (ids === undefined) {
      ids = this.tokenizer.plain(this.space + word);
      if (!ids.length) ids = [this.tokenizer.nothingId];
      this.known.set(word, ids);
    }
    return ids;
  }
}

/** Words `start` to `stop` seen together, of which `first` to `last` are asked here and nowhere else. */
export interface Window {
  start: number;
  stop: number;
  first: number;
  last: number;
}

/**
 * Cover words with windows of at most `room` tokens that share about `stride`; no word is cut in two.
 *
 * Of two windows that hold a word, the one that has more tokens between the word and its own border is asked.
 *
 * @param sizes tokens of each word, each at most `room`.
 */
export function windows(sizes: readonly number[], room: number, stride: number): Window[] {
  const ends = [0];
  for (const size of sizes) ends.push(ends[ends.length - 1] + size);
  const spans: Place[] = [];
  let start = 0;
  for (;;) {
    const stop = firstWhere(ends, (end) => end > ends[start] + room) - 1;
    spans.push([start, stop]);
    if (stop >= sizes.length) break;
    const shared = firstWhere(ends, (end) => end >= ends[stop] - Math.min(stride, Math.floor(room / 2)));
    const fits = firstWhere(ends, (end) => end >= ends[stop + 1] - room); // the next word must be new
    start = Math.max(shared, fits, start + 1);
  }
  const borders = [0];
  for (let i = 0; i + 1 < spans.length; i++)
    borders.push(Math.max(borders[i], border(ends, spans[i], spans[i + 1])));
  borders.push(sizes.length);
  return spans.map(([from, to], i) => ({ start: from, stop: to, first: borders[i], last: borders[i + 1] }));
}

/** Return the first word of an overlap that has at least as much behind it in the later window. */
function border(ends: number[], one: Place, other: Place): number {
  for (let word = other[0]; word < one[1]; word++)
    if (ends[word] - ends[other[0]] >= ends[one[1]] - ends[word + 1]) return word;
  return one[1];
}

function firstWhere(values: number[], holds: (value: number) => boolean): number {
  const at = values.findIndex(holds);
  return at < 0 ? values.length : at;
}

export function same(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((value, i) => value === other[i]);
}
