/** A text as paragraphs in which a place can be marked. Places count characters as Python does, from the text's start. */

import { element } from "./kit.js";

let paragraphs = [];

/** Show a text: lines that begin with # as headings, and what stands between empty lines as paragraphs. */
export function show(place, text) {
  const points = [...text];
  paragraphs = [];
  for (const { index, 0: part } of text.matchAll(/[^\n](?:.|\n(?!\s*(?:\n|#)))*/g)) {
    const sign = part.match(/^#{1,6} +/)?.[0].length ?? 0;
    if (!part.trim()) continue;
    const start = [...text.slice(0, index + sign)].length;
    const end = start + [...part.slice(sign)].length;
    const node = element(sign ? "h3" : "p", { className: "text" });
    paragraphs.push({ start, points: points.slice(start, end), node });
  }
  const first = paragraphs[0]?.node;
  if (first?.tagName === "H3") first.hidden = true; // the title stands above
  for (const one of paragraphs) plain(one);
  place.replaceChildren(...paragraphs.map((one) => one.node));
}

/** Mark a place, instead of the one before, and bring it to the middle of what the text scrolls in. */
export function mark(start, end, scrolling) {
  for (const one of paragraphs) {
    const [from, to] = [start - one.start, end - one.start].map((at) => Math.min(Math.max(at, 0), one.points.length));
    plain(one);
    if (from < to) {
      one.node.replaceChildren(flowing(one.points.slice(0, from)), element("mark", {}, flowing(one.points.slice(from, to))),
        flowing(one.points.slice(to)));
    }
  }
  const top = scrolling.querySelector("mark")?.offsetTop ?? 0;
  scrolling.scrollTo({ top: top - scrolling.clientHeight / 2 });
}

function plain(one) {
  one.node.replaceChildren(flowing(one.points));
}

/** Join characters; a line's end inside a paragraph is a space. */
const flowing = (points) => points.join("").replace(/ *\n */g, " ");
