/**
 * The service worker of an exported model: after the first load the page works without a network.
 *
 * All files that `llmasos.json` names are fetched, compared with their digests and kept; only then the worker takes
 * over. What it answers with isolates the page from other origins, so that the model may use several threads. Each
 * export has its own version: a new one is fetched beside the old one, and takes over when the page asks for it.
 */

import { digest } from "../src/folder.js";

const VERSION = "{version}"; // the exporter writes it
const MANIFEST = "llmasos.json";
const worker = self as any; // the DOM's types know no service worker
const scope: string = worker.registration.scope;
const prefix = `llmasos ${scope} `;
// not every host knows them
const types: Record<string, string> = {
  html: "text/html; charset=utf-8",
  js: "text/javascript",
  mjs: "text/javascript",
  css: "text/css",
  json: "application/json",
  wasm: "application/wasm",
  svg: "image/svg+xml",
  txt: "text/plain; charset=utf-8",
  webmanifest: "application/manifest+json",
};
const isolated = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

worker.addEventListener("install", (event: any) => event.waitUntil(fill()));
worker.addEventListener("activate", (event: any) => event.waitUntil(takeOver()));
worker.addEventListener("message", (event: any) => event.data === "activate" && worker.skipWaiting());
worker.addEventListener("fetch", (event: any) => {
  const url = new URL(event.request.url);
  if (event.request.method === "GET" && url.href.startsWith(scope)) event.respondWith(answer(event.request, url));
});

/** Fetch everything, and keep it only if it is what was exported. */
async function fill(): Promise<void> {
  const cache = await caches.open(prefix + VERSION);
  const content = await (await fetched(MANIFEST)).arrayBuffer();
  const { files, artifact } = JSON.parse(new TextDecoder().decode(content));
  const names = Object.keys(files).filter((name) => !artifact.later.includes(name));
  let done = 0;
  for (const name of names) {
    await cache.put(new URL(name, scope).href, await whole(name, files[name]));
    done++;
    for (const client of await worker.clients.matchAll({ includeUncontrolled: true }))
      client.postMessage({ file: name, done, total: names.length });
  }
  await cache.put(new URL(MANIFEST, scope).href, kept(content, MANIFEST));
}

async function takeOver(): Promise<void> {
  for (const name of await caches.keys()) if (name.startsWith(prefix) && name !== prefix + VERSION) await caches.delete(name);
  await worker.clients.claim();
}

async function answer(request: Request, url: URL): Promise<Response> {
  const cache = await caches.open(prefix + VERSION);
  const name = decodeURI(url.pathname.slice(new URL(scope).pathname.length)) || "index.html";
  const address = new URL(name, scope).href;
  const known = await cache.match(address);
  if (known) return known;
  const manifest = await cache.match(new URL(MANIFEST, scope).href);
  const wanted = manifest && (await manifest.json()).files[name];
  if (!wanted) return fetch(request);
  const found = await whole(name, wanted);
  await cache.put(address, found.clone());
  return found;
}

/** Return a file of the export, from an older version where it is the same. */
async function whole(name: string, wanted: string): Promise<Response> {
  for (const found of [() => caches.match(new URL(name, scope).href), () => fetched(name)]) {
    const content = await (await found())?.arrayBuffer();
    if (content && (await digest(content)) === wanted) return kept(content, name);
  }
  throw new Error(`${name} is not the file that was exported`);
}

async function fetched(name: string): Promise<Response> {
  const response = await fetch(new URL(name, scope), { cache: "no-cache" });
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

function kept(content: ArrayBuffer, name: string): Response {
  const type = types[name.split(".").at(-1) ?? ""] ?? "application/octet-stream";
  return new Response(content, { headers: { "Content-Type": type, "Content-Length": `${content.byteLength}`, ...isolated } });
}
