/**
 * What the pages of apps share: elements, requests whose errors can be read, and two languages.
 *
 * Nothing here makes HTML of a string: what users and models write is text, and stays text.
 */

export const $ = (selector) => document.querySelector(selector);

/** Make an element. Children that are strings become text; properties with a hyphen become attributes. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** An error that a person can read: what is wrong, and what to do. */
export class Trouble extends Error {
  constructor(message, hint = "") {
    super(message);
    this.hint = hint;
  }
}

/** Ask a route of the app: GET without content, POST with JSON, or with the bytes of a file. */
export async function ask(path, content) {
  const isFile = content instanceof Blob;
  let answer;
  try {
    answer = await fetch(path, content === undefined ? {} : {
      method: "POST",
      headers: { "content-type": isFile ? "application/octet-stream" : "application/json" },
      body: isFile ? content : JSON.stringify(content),
    });
  } catch {
    throw new Trouble(
      say("The app does not answer.", "应用没有响应。"),
      say("Is it still running? Start it, then try again.", "它还在运行吗？启动后再试一次。"),
    );
  }
  const told = await answer.json().catch(() => null);
  if (answer.ok && told !== null) return told;
  throw new Trouble(told?.error?.message ?? `${answer.status} ${answer.statusText}`, told?.error?.hint ?? "");
}

/** Return an error as a box, with a button that tries again. */
export function troubled(error, again) {
  const box = element("div", { className: "trouble", role: "alert" }, element("strong", {}, error.message));
  if (error.hint) box.append(element("p", {}, error.hint));
  if (again) {
    const retry = () => {
      box.remove();
      again();
    };
    box.append(element("button", { className: "plain", type: "button", onclick: retry }, say("Try again", "再试一次")));
  }
  return box;
}

// -- languages ----------------------------------------------------------------------------------------

/** Return what is said in the language of the page. */
export const say = (english, chinese) => (document.documentElement.lang === "zh" ? chinese : english);

/**
 * Show the page in one language: each element's own, or what its data-zh says; likewise data-zh-placeholder and
 * data-zh-label. The page is told by the event "spoken".
 */
export function speak(language) {
  document.documentElement.lang = language;
  const places = { zh: "textContent", zhPlaceholder: "placeholder", zhLabel: "ariaLabel" };
  for (const [key, property] of Object.entries(places)) {
    const attribute = `data-${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    for (const one of document.querySelectorAll(`[${attribute}]`)) {
      one.dataset[`own${key}`] ??= one[property];
      one[property] = language === "zh" ? one.dataset[key] : one.dataset[`own${key}`];
    }
  }
  document.dispatchEvent(new Event("spoken"));
}

/** Begin in the reader's language, and let a button change it. */
export function begin(button = $("#language")) {
  const kept = localStorage.getItem("language");
  speak(kept ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
  button.addEventListener("click", () => {
    const other = say("zh", "en");
    localStorage.setItem("language", other);
    speak(other);
  });
}
