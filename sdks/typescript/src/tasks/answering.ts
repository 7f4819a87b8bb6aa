/**
 * Extractive question answering: the answer is a passage of the context, or there is none.
 *
 * A context longer than the model takes is read in windows that overlap; probabilities are over all of them together.
 * See `tasks/question_answering.py`, whose answers these are.
 */

import { UsageError } from "../errors.js";
import type { Sequence, TextTokenizer } from "../tokenizer.js";
import type { Place } from "../words.js";
import { text, type Example, type Matrix, type Task } from "./base.js";

export interface Question {
  question: string;
  context: string;
}

/** One possible answer: `context.slice(start, end)`, and its probability. */
export interface Passage {
  answer: string;
  score: number;
  start: number;
  end: number;
}

/** The answer to one question. */
export interface Answer {
  /** The passage, character by character; "" if there is no answer. */
  answer: string;
  score: number;
  /** Where it is in the context; null if there is no answer. */
  start: number | null;
  end: number | null;
  /** The probability that there is none; null for a model that always answers. */
  no_answer_score: number | null;
  /** The most likely passages, best first. */
  n_best: Passage[];
  /** Tokens of the question that the model did not see; absent where there are none. */
  truncated?: number;
}

const LONGEST_ANSWER = 30; // tokens, as in Python
const LEAST_CONTEXT = 16; // tokens of context that a window has, however long the question is

/** `none`: place of the token for "no answer"; `first`: of the first context token, which is token `start` of all. */
interface Window {
  none: number;
  first: number;
  start: number;
  places: Place[];
}

export class QuestionAnswering implements Task<Question, Answer> {
  readonly tag = "question-answering";
  readonly output = "token";

  constructor(
    private readonly settings: any,
    private readonly tokenizer: TextTokenizer,
    private readonly longest: number,
  ) {}

  encode(rows: readonly Question[]): Example[] {
    return rows.flatMap((row, i) => {
      const asked = text(row?.question, `question ${i + 1}`);
      const { question, context, places, around } = this.tokenizer.sides(asked, text(row?.context, `context ${i + 1}`));
      const { before, middle, after, types } = around;
      const room = this.longest - before.ids.length - middle.ids.length - after.ids.length;
      if (room < 2) throw new UsageError(`${this.longest} tokens leave no place for a question and a context`);
      const least = Math.min(LEAST_CONTEXT, Math.floor(room / 2), Math.max(1, context.length));
      const cut = Math.max(0, question.length - (room - least));
      const kept = question.slice(0, question.length - cut);
      const side = (ids: number[], type: number): Sequence => ({ ids, types: ids.map(() => type) });
      const head = [before, side(kept, types[0]), middle];
      const first = head.reduce((sum, part) => sum + part.ids.length, 0);
      return parts(context.length, room - kept.length, this.settings.stride).map(([start, stop]) => {
        const all = [...head, side(context.slice(start, stop), types[1]), after];
        const ids = all.flatMap((part) => part.ids);
        const none = this.tokenizer.clsId === undefined ? 0 : Math.max(0, ids.indexOf(this.tokenizer.clsId));
        const window: Window = { none, first, start, places: places.slice(start, stop) };
        return { row: i, sequences: [{ ids, types: all.flatMap((part) => part.types ?? []) }], cut, context: window };
      });
    });
  }

  decode(rows: readonly Question[], examples: readonly Example[], outputs: readonly Matrix[][]): Answer[] {
    return rows.map((row, i) => {
      const mine = examples.map((_, at) => at).filter((at) => examples[at].row === i);
      const seen = mine.map((at) => ({ window: examples[at].context as Window, logits: outputs[at][0].data }));
      const answer = this.answer(row.context, seen);
      const { cut } = examples[mine[0]];
      return cut ? { ...answer, truncated: cut } : answer;
    });
  }

  private answer(context: string, windows: { window: Window; logits: Float32Array }[]): Answer {
    const total = Math.max(...windows.map(({ window }) => window.start + window.places.length));
    const longest = Math.max(1, Math.min(this.settings.max_answer_length ?? LONGEST_ANSWER, total));
    const scores = new Float64Array(total * longest).fill(-Infinity); // [first token, further tokens]
    const places: Place[] = [];
    let none = Infinity;
    for (const { window, logits } of windows) {
      none = Math.min(none, logits[2 * window.none] + logits[2 * window.none + 1]);
      const count = window.places.length;
      for (let token = 0; token < count; token++) {
        places[window.start + token] = window.places[token];
        const start = logits[2 * (window.first + token)];
        for (let more = 0; more < longest && token + more < count; more++) {
          const at = (window.start + token) * longest + more;
          scores[at] = Math.max(scores[at], start + logits[2 * (window.first + token + more) + 1]);
        }
      }
    }
    const open = Boolean(this.settings.unanswerable);
    const top = scores.reduce((most, value) => Math.max(most, value), open ? none : -Infinity);
    const sum = scores.reduce((all, value) => all + Math.exp(value - top), open ? Math.exp(none - top) : 0);
    const whole = Number.isFinite(top) ? top + Math.log(sum) : 0;
    const best = this.passages(scores, longest, places, context, whole);
    const no_answer_score = open ? Math.exp(none - whole) : null;
    const highest = scores.reduce((most, value) => Math.max(most, value), -Infinity);
    if (!best.length || (open && none - highest > this.settings.null_threshold))
      return { answer: "", score: no_answer_score ?? 0, start: null, end: null, no_answer_score, n_best: best };
    return { ...best[0], no_answer_score, n_best: best };
  }

  /** Return the best different passages; `whole` is the logarithm of the sum over all. */
  private passages(
    scores: Float64Array,
    longest: number,
    places: Place[],
    context: string,
    whole: number,
  ): Passage[] {
    const order = Array.from(scores.keys()).filter((at) => scores[at] > -Infinity);
    order.sort((one, other) => scores[other] - scores[one] || one - other);
    const found: Passage[] = [];
    for (const at of order.slice(0, 8 * this.settings.n_best + 8)) {
      if (found.length === this.settings.n_best) break;
      const token = Math.floor(at / longest);
      const span = context.slice(places[token][0], places[token + (at % longest)][1]);
      const answer = span.trim();
      const start = places[token][0] + span.length - span.trimStart().length;
      const end = start + answer.length;
      if (answer && !found.some((one) => one.start === start && one.end === end))
        found.push({ answer, score: Math.exp(scores[at] - whole), start, end });
    }
    return found;
  }
}

/** Return the first context token of each window and the one behind its last. */
function parts(total: number, room: number, stride: number): Place[] {
  const overlap = Math.min(stride, Math.floor(room / 2));
  if (total <= room) return [[0, total]];
  const found: Place[] = [];
  for (let start = 0; start < total - overlap; start += room - overlap) found.push([start, Math.min(start + room, total)]);
  return found;
}
