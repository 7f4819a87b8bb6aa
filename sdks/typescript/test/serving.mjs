/** A plain file server for tests: a folder, and what stands in the place of some of its files. */

import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join, normalize } from "node:path";

import { digest } from "../dist/folder.js";

/** Serve a folder; return its URL, and how to end. `changes`: name -> new content of a file, from the old. */
export async function served(folder, changes = {}) {
  const server = createServer(async (request, response) => {
    const name = normalize(decodeURI(new URL(request.url, "http://x").pathname)).slice(1);
    try {
      const content = await readFile(join(folder, name));
      response.end(changes[name] ? changes[name](content) : content);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}

/**
 * Change a file and everything that vouches for it, as somebody would who wants to be believed.
 *
 * @param change changes its content, or returns another; @param read reads the content: as JSON if not given.
 */
export async function believed(folder, name, file, change, read = JSON.parse) {
  const content = read(readFileSync(join(folder, name, file), "utf8"));
  const changed = change(content);
  const text = typeof content === "string" ? changed : JSON.stringify(content);
  const manifest = JSON.parse(readFileSync(join(folder, name, "llmasos.json"), "utf8"));
  manifest.files[file] = await digest(new TextEncoder().encode(text));
  return { [file]: () => text, "llmasos.json": () => JSON.stringify(manifest) };
}
