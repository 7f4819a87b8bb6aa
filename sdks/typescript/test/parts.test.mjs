/**
 * What needs no model, as Python does it: tokens, draws, forbidden tokens, chat templates, texts.
 *
 * LLMASOS_CASES names a folder that `tests/test_web_parts.py` fills with what Python does.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { UsageError } from "../dist/errors.js";
import { chosen, filtered, lawful, Random } from "../dist/sampling.js";
import { Spelling } from "../dist/spelling.js";
import { ChatTemplate } from "../dist/template.js";
import { TextTokenizer } from "../dist/tokenizer.js";

const folder = process.env.LLMASOS_CASES;
const skip = folder ? false : "needs what Python does: tests/test_web_parts.py writes it";
const json = (...names) => JSON.parse(readFileSync(join(folder, ...names), "utf8"));

test("tokens and their places are those of Python", { skip }, () => {
  for (const name of json("tokenizers.json")) {
    const tokenizer = new TextTokenizer(json(name, "tokenizer.json"), json(name, "tokenizer_config.json"));
    for (const { text, ids, words, single, pair, longest } of json(name, "cases.json")) {
      const placed = tokenizer.placed(text);
      assert.deepEqual(placed.ids, ids, `${name}: ${text}`);
      const characters = placed.places.map(([start, end]) => text.slice(start, end).trim());
      assert.deepEqual(characters, words, `${name}: ${text}`);
      assert.deepEqual(tokenizer.single(text, longest).ids, single, `${name}: ${text}`);
      const both = tokenizer.pair(text, "a second text", longest);
      assert.deepEqual(both.ids, pair.ids, `${name}: ${text}`);
      if (pair.types) assert.deepEqual(both.types, pair.types, `${name}: ${text}`);
    }
  }
});

test("a seed draws the numbers of torch", { skip }, () => {
  for (const { seed, numbers } of json("random.json")) {
    const random = new Random(seed);
    assert.deepEqual(numbers.map(() => random.next()), numbers, `seed ${seed}`);
  }
});

test("filters leave the tokens that they leave in Python, and draws are the same", { skip }, () => {
  for (const { how, logits, kept, tokens, seed } of json("draws.json")) {
    const random = new Random(seed);
    const scores = Float32Array.from(logits);
    const chances = filtered(scores, how);
    assert.deepEqual([...chances.keys()].filter((i) => chances[i] > 0), kept, JSON.stringify(how));
    assert.deepEqual(tokens.map(() => chosen(scores, how, random)), tokens, JSON.stringify(how));
  }
});

test("penalties and what a model's own settings forbid are those of Python", { skip }, () => {
  for (const { logits, history, penalty, settings, ends, scores } of json("forbidden.json")) {
    const found = lawful(Float32Array.from(logits), history, penalty, settings, new Set(ends));
    const wanted = scores.map((score) => (score === null ? -Infinity : Math.fround(score)));
    assert.deepEqual([...found], wanted, JSON.stringify(settings));
  }
});

test("chat templates make the texts of Python, and refuse what they refuse there", { skip }, () => {
  const { content, config, cases } = json("templates.json");
  let refused = 0;
  for (const { name, template, messages, text } of cases) {
    const made = new ChatTemplate(template, content, config);
    if (text !== null) assert.equal(made.render(messages), text, name);
    else assert.throws(() => made.render(messages), UsageError, `${name}: ${JSON.stringify(messages)}`);
    refused += text === null;
  }
  assert.ok(refused > 3 && cases.length - refused > 10);
});

test("texts come in the pieces of Python, and end where a stop string begins", { skip }, () => {
  for (const { tokenizer, cases } of json("texts.json")) {
    const reads = new TextTokenizer(json(tokenizer, "tokenizer.json"), json(tokenizer, "tokenizer_config.json"));
    for (const { tokens, stop, pieces, text, stopped } of cases) {
      const spelling = new Spelling(reads, stop);
      const found = [];
      for (const token of tokens) {
        found.push(spelling.push(token));
        if (spelling.stopped) break;
      }
      found.push(spelling.finish());
      assert.deepEqual(found, pieces, `${text} | ${stop}`);
      assert.equal(spelling.text, text);
      assert.equal(spelling.stopped, stopped);
    }
  }
});
