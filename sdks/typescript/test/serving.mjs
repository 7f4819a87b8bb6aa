/** A plain file server for tests: a folder, and what stands in the place of some of its files. */

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join, normalize } from "node:path";

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
