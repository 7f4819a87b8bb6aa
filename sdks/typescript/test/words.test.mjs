import assert from "node:assert/strict";
import { test } from "node:test";

import { cosine } from "../dist/index.js";
import { spans } from "../dist/tasks/tagging.js";
import { longestFirst } from "../dist/tokenizer.js";
import { joined, splitWords, windows } from "../dist/words.js";

test("words of scripts with and without spaces, and signs", () => {
  const text = "Ida's 北京 trip\u200b, 3.14 € 👍🏽!";
  assert.deepEqual(
    splitWords(text).map(([start, end]) => text.slice(start, end)),
    ["Ida", "'", "s", "北", "京", "trip", ",", "3", ".", "14", "€", "👍🏽", "!"],
  );
});

test("words are joined without spaces in Chinese", () => {
  const [text, places] = joined(["in", "北", "京", "now"]);
  assert.equal(text, "in 北京 now");
  assert.deepEqual(places.map(([start, end]) => text.slice(start, end)), ["in", "北", "京", "now"]);
});

test("windows cover every word once, and share", () => {
  const sizes = Array.from({ length: 50 }, (_, i) => 1 + (i % 4));
  const found = windows(sizes, 20, 8);
  assert.ok(found.length > 5);
  assert.deepEqual(
    found.flatMap(({ first, last }) => Array.from({ length: last - first }, (_, i) => first + i)),
    Array.from(sizes.keys()),
  );
  for (const { start, stop, first, last } of found) {
    assert.ok(sizes.slice(start, stop).reduce((sum, size) => sum + size, 0) <= 20);
    assert.ok(start <= first && last <= stop);
  }
});

test("of a pair the longer text is cut first", () => {
  assert.deepEqual(longestFirst(3, 4, 10), [3, 4]);
  assert.deepEqual(longestFirst(3, 20, 10), [3, 7]);
  assert.deepEqual(longestFirst(20, 3, 10), [7, 3]);
  assert.deepEqual(longestFirst(20, 30, 11), [5, 6]);
});

test("tags are read as entities", () => {
  assert.deepEqual(spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]), [["PER", 0, 2], ["LOC", 3, 4], ["LOC", 4, 5]]);
});

test("cosines have six digits", () => {
  assert.equal(cosine(Float32Array.of(1, 0), Float32Array.of(1, 1)), 0.707107);
  assert.equal(cosine(Float32Array.of(1, 2), Float32Array.of(2, 4)), 1);
});
