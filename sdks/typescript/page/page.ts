/** The page of an exported model. */

import { chat } from "./chat.js";
import { LLMasOSError, LocalModel } from "./sdk.js";
import { element, percent, viewOf, type Form } from "./views.js";

const byId = (id: string): HTMLElement => document.getElementById(id)!;
const RELOADED = "llmasos reloaded";

async function main(): Promise<void> {
  const facts: [kind: string, text: string][] = [];
  try {
    if (await prepared(facts)) return; // the page begins anew, under its service worker
    say("Loading the model…");
    const sizes = new Map<string, [number, number]>();
    const model = await LocalModel.load("./", {
      progress({ file, loaded, total }) {
        sizes.set(file, [loaded, total || loaded]);
        const [there, all] = [...sizes.values()].reduce(([a, b], [c, d]) => [a + c, b + d]);
        say(`Loading the model… ${(there / 1e6).toFixed(1)} MB`, there / all);
      },
    });
    show(model, facts);
  } catch (error) {
    refused(error);
  }
  byId("loading").hidden = true;
  byId("facts").replaceChildren(...facts.map(([kind, text]) => element("li", kind, text)));
}

/** Fetch everything for use without a network; return whether the page is loaded again. */
async function prepared(facts: [string, string][]): Promise<boolean> {
  const { serviceWorker } = navigator;
  if (!serviceWorker) {
    facts.push(["bad", "Not kept for use offline: this page is not on https."]);
    return false;
  }
  if (!serviceWorker.controller) {
    say("Keeping the model for use offline…");
    serviceWorker.addEventListener("message", ({ data }) =>
      say(`Keeping the model for use offline… ${data.done} of ${data.total} files`, data.done / data.total),
    );
  }
  try {
    const registration = await serviceWorker.register("sw.js");
    await ready(registration);
    offerUpdates(registration);
  } catch (error) {
    facts.push(["bad", `Not kept for use offline: ${(error as Error).message}`]);
    return false;
  }
  // under the worker the page is isolated, so that it may use threads; once is enough
  if (!globalThis.crossOriginIsolated && !sessionStorage.getItem(RELOADED)) {
    sessionStorage.setItem(RELOADED, "yes");
    location.reload();
    return true;
  }
  facts.push(["good", "Works offline: everything is kept on this device."]);
  return false;
}

function ready(registration: ServiceWorkerRegistration): Promise<void> {
  return new Promise((done, failed) => {
    if (registration.active) return done();
    const worker = registration.installing ?? registration.waiting;
    worker?.addEventListener("statechange", () => {
      if (worker.state === "activated") done();
      if (worker.state === "redundant") failed(new Error("a file is missing, or is not the one that was exported"));
    });
  });
}

function offerUpdates(registration: ServiceWorkerRegistration): void {
  const offer = (worker: ServiceWorker | null): void => {
    if (!worker || !navigator.serviceWorker.controller) return;
    const offered = (): void => {
      if (worker.state === "installed") byId("update").hidden = false;
    };
    worker.addEventListener("statechange", offered);
    offered();
    byId("use-update").addEventListener("click", () => {
      navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
      worker.postMessage("activate");
    });
  };
  offer(registration.waiting ?? registration.installing);
  registration.addEventListener("updatefound", () => offer(registration.installing));
}

function show(model: LocalModel, facts: [string, string][]): void {
  const view = viewOf(model);
  document.title = view.title;
  byId("title").textContent = view.title;
  byId("lead").textContent = `${view.lead} Your text stays on this device.`;
  const { rows, relative, allowed, written } = model.verified;
  const tokens = `${rows} golden rows give the tokens of the export`;
  const same = written === undefined ? "" : `, ${Math.round(written * rows)} of their answers are the same to the last token`;
  const numbers = `numbers within ${percent(relative)} of its own (${percent(allowed)} allowed)`;
  facts.unshift(["good", `Checked here: ${tokens}${same}, and ${numbers}.`]);
  const score = model.certificate.score;
  if (score) {
    const [before, after] = [score.model, score.artifact].map(({ value }) => value.toFixed(4));
    facts.push(["", `On ${score.rows.toLocaleString()} rows: ${score.metric} ${after}; before the export ${before}.`]);
  }
  const where = model.device === "webgpu" ? "WebGPU" : `WebAssembly, ${model.threads} thread${model.threads > 1 ? "s" : ""}`;
  facts.push(["", `${model.precision}, ${where}.`]);
  for (const note of model.notes) facts.push(["bad", `${capital(note)}.`]);
  if ("ask" in view) form(model, view);
  else chat(model, { form: byId("form"), result: byId("result"), error: byId("error"), refused });
}

function form(model: LocalModel, view: Form): void {
  const place = byId("form");
  const inputs = new Map<string, HTMLTextAreaElement | HTMLInputElement>();
  for (const { name, label, kind } of view.fields) {
    const input = element(kind === "line" ? "input" : "textarea", kind);
    input.id = input.name = name;
    const caption = element("label", "", label);
    caption.htmlFor = name;
    inputs.set(name, input);
    place.append(caption, input);
  }
  const ask = element("button", "", view.verb);
  const example = element("button", "plain", "Example");
  ask.id = "ask";
  example.id = "example";
  ask.type = example.type = "button";
  const actions = element("div", "actions");
  actions.append(ask, example);
  place.append(actions);
  ask.addEventListener("click", async () => {
    ask.disabled = true;
    byId("error").hidden = true;
    try {
      const values = Object.fromEntries([...inputs].map(([name, input]) => [name, input.value]));
      byId("result").replaceChildren(...(await view.ask(model, values)));
      byId("result").hidden = false;
    } catch (error) {
      byId("result").hidden = true;
      refused(error);
    }
    ask.disabled = false;
  });
  let next = 0;
  example.addEventListener("click", () => {
    const row = view.example(model.golden.rows[next++ % model.golden.rows.length]);
    for (const [name, input] of inputs) input.value = row[name];
    ask.click();
  });
  place.hidden = false;
}

function refused(error: unknown): void {
  const known = error instanceof LLMasOSError ? error : null;
  const place = byId("error");
  const title = known ? known.name : "Error";
  place.replaceChildren(element("strong", "", title), `\n${known?.reason ?? error}${known?.hint ? `\nHint: ${known.hint}.` : ""}`);
  place.hidden = false;
}

function capital(text: string): string {
  return text[0].toUpperCase() + text.slice(1);
}

function say(text: string, share?: number): void {
  byId("loading-text").textContent = text;
  const bar = byId("loading-bar") as HTMLProgressElement;
  if (share === undefined) bar.removeAttribute("value");
  else bar.value = share;
}

void main();
