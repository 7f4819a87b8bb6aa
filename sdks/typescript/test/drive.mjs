/**
 * Drive a real Chromium: read a JSON plan from standard input, write what each step gave as one JSON line.
 *
 *     {"browser": path, "phone": false, "flags": [...], "init": "code", "steps": [["goto", url], ["click", "#ask"], ...]}
 */

import { chromium, devices } from "playwright-core";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

/** Milliseconds that a step may take: long on a machine that is busy with something else, and short for what hangs. */
const PATIENCE = 240_000;

let text = "";
for await (const part of process.stdin) text += part;
const plan = JSON.parse(text);
const profile = await mkdtemp(join(tmpdir(), "llmasos-browser-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: plan.browser,
  args: [...FLAGS, ...(plan.flags ?? ["--disable-gpu"])],
  ...(plan.phone ? devices["Pixel 7"] : { viewport: { width: 1100, height: 900 } }),
  serviceWorkers: "allow",
  colorScheme: plan.dark ? "dark" : "light",
});
if (plan.init) await context.addInitScript(plan.init); // before any script of the page
const page = context.pages()[0] ?? (await context.newPage());
page.setDefaultTimeout(PATIENCE);
const said = [];
page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
page.on("pageerror", (error) => said.push(`pageerror: ${error.message}`));
page.on("requestfailed", (request) => said.push(`failed: ${request.url()}`));

const steps = {
  goto: (url) => page.goto(url).then(() => null),
  reload: () => page.reload().then(() => null),
  offline: (is) => context.setOffline(is),
  /** Wait until the page can be asked, or refuses; return the title and the error. */
  ready: async () => {
    await page.waitForSelector("#form:not([hidden]), #error:not([hidden])");
    return { title: await page.title(), error: await page.textContent("#error"), facts: await page.textContent("#facts") };
  },
  fill: (selector, value) => page.fill(selector, value),
  click: (selector) => page.click(selector),
  text: (selector) => page.textContent(selector),
  see: (selector) => page.waitForSelector(selector).then(() => null),
  html: (selector) => page.innerHTML(selector),
  run: (code) => page.evaluate(code),
  shot: (path) => page.screenshot({ path, fullPage: true }).then(() => null),
};

/** Wait for a step; code of a page has no limit of its own. */
async function inTime(step) {
  let timer;
  const over = new Promise((_, failed) => {
    timer = setTimeout(() => failed(new Error(`not done after ${PATIENCE / 1000} s`)), 1.1 * PATIENCE);
  });
  return Promise.race([step, over]).finally(() => clearTimeout(timer));
}

const results = [];
let failure = null;
try {
  for (const [name, ...words] of plan.steps) results.push((await inTime(steps[name](...words))) ?? null);
} catch (error) {
  failure = `${plan.steps[results.length]}: ${error.message}`;
}
await context.close();
await rm(profile, { recursive: true, force: true });
console.log(JSON.stringify({ results, failure, said }));
