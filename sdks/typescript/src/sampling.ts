/**
 * Choose the next token: the likeliest, or one drawn from what temperature, top-k, top-p and min-p leave.
 *
 * Filters have the order of `generation/sampling.py`, and draws the numbers of torch's generator: where logits are the
 * same, a seed draws here what it draws in Python.
 */

import { largest } from "./tasks/base.js";

/** How tokens are chosen; `temperature` 0 is greedy. */
export interface Sampling {
  temperature: number;
  top_p: number;
  top_k: number;
  min_p: number;
  repetition_penalty: number;
}

/** What the model's own `generation_config.json` forbids. */
export interface Forbidden {
  no_repeat_ngram_size?: number | null;
  bad_words_ids?: number[][] | null;
  suppress_tokens?: number[] | null;
}

/** Return a token. `history`: what was read and written. */
export function chosen(scores: Float32Array, how: Sampling, random: Random): number {
  return how.temperature === 0 ? largest(scores) : drawn(filtered(scores, how), random.next());
}

/** Make what the history holds less likely (Keskar et al. 2019), and what the model's own settings forbid impossible. */
export function lawful(
  logits: Float32Array, history: readonly number[], penalty: number, forbidden: Forbidden, ends: ReadonlySet<number>,
): Float32Array {
  const scores = logits.slice();
  if (penalty !== 1)
    for (const token of new Set(history)) scores[token] = scores[token] < 0 ? scores[token] * penalty : scores[token] / penalty;
  const never = [...(forbidden.suppress_tokens ?? []), ...repeated(history, forbidden.no_repeat_ngram_size ?? 0)];
  for (const word of forbidden.bad_words_ids ?? []) {
    const begins = word.slice(0, -1);
    const there = history.slice(history.length - begins.length);
    const isEnd = word.length === 1 && ends.has(word[0]);
    if (!isEnd && begins.every((token, i) => token === there[i])) never.push(word[word.length - 1]);
  }
  for (const token of never) scores[token] = -Infinity;
  return scores;
}

/** Return the tokens that would repeat `size` tokens of the history. */
function repeated(history: readonly number[], size: number): number[] {
  if (!size || history.length + 1 < size) return [];
  const begins = history.slice(history.length - size + 1);
  const found: number[] = [];
  for (let at = 0; at + size <= history.length; at++)
    if (begins.every((token, i) => token === history[at + i])) found.push(history[at + size - 1]);
  return found;
}

/** Return probabilities, 0 where top-k, top-p or min-p leave a token out. */
export function filtered(logits: ArrayLike<number>, how: Sampling): Float64Array {
  const scores = Float64Array.from(logits, (logit) => logit / how.temperature);
  if (how.top_k) {
    const least = scores.slice().sort()[scores.length - Math.min(how.top_k, scores.length)];
    keep(scores, (score) => score >= least);
  }
  const chances = probabilities(scores);
  if (how.top_p < 1) {
    const least = nucleus(chances, how.top_p);
    const kept = new Set(least);
    chances.forEach((_, i) => kept.has(i) || (chances[i] = 0));
  }
  if (how.min_p > 0) {
    const least = how.min_p * chances[largest(chances)];
    chances.forEach((chance, i) => chance < least && (chances[i] = 0));
  }
  return chances;
}

/** Return the fewest likeliest tokens that hold this share of the probability (Holtzman et al. 2020). */
function nucleus(chances: Float64Array, share: number): number[] {
  // what is less likely than this holds, all together, less than what is left out
  const least = (1 - share) / chances.length;
  const order: number[] = [];
  chances.forEach((chance, i) => chance >= least && order.push(i));
  order.sort((one, other) => chances[other] - chances[one]);
  let before = 0;
  const end = order.findIndex((token) => {
    if (before >= share) return true;
    before += chances[token];
    return false;
  });
  return end < 0 ? order : order.slice(0, end);
}

/** Return the token at a place of the probabilities, laid end to end; `point` is a share of their sum. */
function drawn(chances: Float64Array, point: number): number {
  let left = point * chances.reduce((sum, chance) => sum + chance, 0);
  for (let i = 0; i < chances.length; i++) {
    left -= chances[i];
    if (left < 0) return i;
  }
  return largest(chances);
}

function keep(scores: Float64Array, isKept: (score: number) => boolean): void {
  scores.forEach((score, i) => isKept(score) || (scores[i] = -Infinity));
}

function probabilities(scores: Float64Array): Float64Array {
  const top = scores[largest(scores)];
  const powers = scores.map((score) => Math.exp(score - top));
  const sum = powers.reduce((all, power) => all + power, 0);
  return powers.map((power) => power / sum);
}

/** The Mersenne twister (Matsumoto and Nishimura 1998), seeded and read as torch does. */
export class Random {
  private readonly state = new Uint32Array(624);
  private at = 624;

  constructor(seed: number) {
    const { state } = this;
    state[0] = Number((BigInt(seed) * 1_000_003n) & 0xffffffffn);
    for (let i = 1; i < 624; i++) {
      const last = state[i - 1] ^ (state[i - 1] >>> 30);
      state[i] = Math.imul(1812433253, last) + i;
    }
  }

  /** Return a number from 0 to below 1, of 53 random bits. */
  next(): number {
    const high = this.bits() & 0x1fffff;
    return (high * 2 ** 32 + this.bits()) * 2 ** -53;
  }

  private bits(): number {
    if (this.at === 624) this.turn();
    let y = this.state[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  private turn(): void {
    const { state } = this;
    for (let i = 0; i < 624; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }
}
