/**
 * Token classification: a tag for every word, and from the tags the entities of a text.
 *
 * A word's tag is asked at its first piece. With IOB2 tags the answer is the most probable sequence among those that
 * are well formed. See `tasks/token_classification.py`, whose answers these are.
 */

import { UsageError } from "../errors.js";
import type { TextTokenizer } from "../tokenizer.js";
import { joined, Pieces, splitWords, windows, type Place } from "../words.js";
import { largest, softmax, text, type Example, type Matrix, type Task } from "./base.js";

/** A word, where it is in the text, its tag and the probability that the model gives to this tag. */
export interface TaggedWord {
  text: string;
  start: number;
  end: number;
  tag: string;
  score: number;
}

/** Neighbouring words of one type. `start` and `end` are places in the text, the others count words. */
export interface Entity {
  label: string;
  text: string;
  start: number;
  end: number;
  start_word: number;
  end_word: number;
  /** The mean of the words' scores. */
  score: number;
}

/** The answer for one text; for words, `text` is these with spaces between them. */
export interface Tagged {
  text: string;
  words: TaggedWord[];
  entities: Entity[];
}

/** A text, or its words. */
export type WordsRow = string | readonly string[] | { text: string } | { tokens: readonly string[] };

const OUTSIDE = "O";

export class TokenClassification implements Task<WordsRow, Tagged> {
  readonly tag = "token-classification";
  readonly output = "token";
  private readonly labels: string[];
  private readonly pieces: Pieces;

  constructor(
    private readonly settings: any,
    private readonly tokenizer: TextTokenizer,
    private readonly longest: number,
  ) {
    this.labels = settings.labels;
    this.pieces = new Pieces(tokenizer);
  }

  encode(rows: readonly WordsRow[]): Example[] {
    const { before, after } = this.tokenizer;
    const room = this.longest - before.length - after.length;
    return rows.flatMap((row, i) => {
      const { words } = read(row, i);
      let cut = 0;
      const parts = words.map((word) => {
        const ids = this.pieces.of(word);
        cut += Math.max(0, ids.length - room);
        return ids.slice(0, room);
      });
      return windows(parts.map((part) => part.length), room, this.settings.stride).map((window) => {
        const asked: number[] = [];
        const ids = [...before];
        for (let word = window.start; word < window.stop; word++) {
          if (window.first <= word && word < window.last) asked.push(ids.length);
          ids.push(...parts[word]);
        }
        return { row: i, sequences: [{ ids: [...ids, ...after] }], cut, context: asked };
      });
    });
  }

  decode(rows: readonly WordsRow[], examples: readonly Example[], outputs: readonly Matrix[][]): Tagged[] {
    const lines: number[][][] = rows.map(() => []);
    examples.forEach(({ row, context }, i) => {
      const [{ data, width }] = outputs[i];
      for (const token of context as number[])
        lines[row].push(softmax(data.subarray(token * width, (token + 1) * width)));
    });
    return rows.map((row, i) => this.answer(read(row, i), lines[i]));
  }

  private answer(row: Words, chances: number[][]): Tagged {
    const best = this.best(chances);
    const words = row.words.map((word, i) => ({
      text: word,
      start: row.places[i][0],
      end: row.places[i][1],
      tag: this.labels[best[i]],
      score: chances[i][best[i]],
    }));
    const raw = this.settings.scheme === "raw";
    const tags = words.map(({ tag }) => (raw && tag !== OUTSIDE ? `I-${tag}` : tag));
    const entities = spans(tags).map(([label, first, last]) => {
      const { start } = words[first];
      const { end } = words[last - 1];
      const score = words.slice(first, last).reduce((sum, word) => sum + word.score, 0) / (last - first);
      return { label, text: row.text.slice(start, end), start, end, start_word: first, end_word: last, score };
    });
    return { text: row.text, words, entities };
  }

  /** Return the most probable sequence of tags in which each I- follows its own type (Viterbi 1967). */
  private best(chances: number[][]): number[] {
    const { labels } = this;
    const alone = chances.map(largest);
    if (this.settings.scheme === "raw") return alone;
    const follows = (before: string, tag: string): boolean => !tag.startsWith("I-") || before.slice(2) === tag.slice(2);
    if (alone.every((tag, i) => follows(i ? labels[alone[i - 1]] : OUTSIDE, labels[tag]))) return alone;
    let total = labels.map((tag, k) => (follows(OUTSIDE, tag) ? Math.log(chances[0][k]) : -Infinity));
    const back: number[][] = [[]];
    for (const line of chances.slice(1)) {
      const from = labels.map((tag) => largest(labels.map((before, k) => (follows(before, tag) ? total[k] : -Infinity))));
      total = from.map((k, tag) => (follows(labels[k], labels[tag]) ? total[k] + Math.log(line[tag]) : -Infinity));
      back.push(from);
    }
    const path = [largest(total)];
    for (let i = chances.length - 1; i > 0; i--) path.unshift(back[i][path[0]]);
    return path;
  }
}

/** Read IOB tags as the CoNLL evaluation does: I- goes on with its own type, and else begins anew. */
export function spans(tags: readonly string[]): [label: string, start: number, end: number][] {
  const found: [string, number, number][] = [];
  let start = 0;
  let current = "";
  [...tags, OUTSIDE].forEach((tag, i) => {
    const kind = /^[BI]-/.test(tag) ? tag.slice(2) : "";
    if (kind && tag[0] === "I" && kind === current) return;
    if (current) found.push([current, start, i]);
    start = i;
    current = kind;
  });
  return found;
}

interface Words {
  words: readonly string[];
  text: string;
  places: Place[];
}

function read(row: WordsRow, i: number): Words {
  const given = typeof row === "object" && "tokens" in row ? row.tokens : typeof row === "object" && "text" in row ? row.text : row;
  if (Array.isArray(given)) {
    if (!given.length || given.some((word) => typeof word !== "string" || !word))
      throw new UsageError(`the words of text ${i + 1} are not all words`, "a list of strings, none of them empty");
    const [whole, places] = joined(given);
    return { words: given, text: whole, places };
  }
  const whole = text(given, `text ${i + 1}`);
  const places = splitWords(whole);
  if (!places.length) throw new UsageError(`text ${i + 1} has no words`, "some text");
  return { words: places.map(([start, end]) => whole.slice(start, end)), text: whole, places };
}
