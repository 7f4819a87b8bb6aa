/** Golden rows of a server's model: what it is asked, and what it must answer. */

/** What `GET /v1/golden` gives. */
export interface GoldenRows {
  model: string;
  version: string;
  task: string;
  /** How far a number may be from what is expected. */
  tolerance: number;
  rows: { path: string; body: object; expected: unknown }[];
}

/** How far a number is from what was expected, and where; infinitely where it is something else. */
export interface Apart {
  by: number;
  where: string;
}

/** Compare what came with what was expected; what was not expected is not looked at. */
export function compared(found: any, expected: any, where = "answer"): Apart {
  if (typeof expected === "number" && typeof found === "number") {
    const by = Math.abs(found - expected);
    return { by: Number.isNaN(by) ? Infinity : by, where };
  }
  const same = { by: 0, where };
  if (expected === null || typeof expected !== "object") return found === expected ? same : { by: Infinity, where };
  if (found === null || typeof found !== "object") return { by: Infinity, where };
  if (Array.isArray(expected) && expected.length !== found.length) return { by: Infinity, where };
  return Object.keys(expected)
    .map((key) => compared(found[key], expected[key], `${where}.${key}`))
    .reduce((worst, one) => (one.by > worst.by ? one : worst), same);
}
