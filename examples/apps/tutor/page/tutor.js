/** The tutor's page: a text to read, questions about it, and questions back. */

import { $, ask, begin, element, say, troubled } from "./kit.js";
import { show, mark } from "./reading.js";

let open = null; // the text that is read: its id, title and text
let next = 0; // the number of the next question back

/** Show a text, and begin anew with it. */
function read(text) {
  open = text;
  next = 0;
  $("#title").textContent = text.title;
  show($("#text"), text.text);
  $("#article").scrollTop = 0;
  $("#answers").replaceChildren();
  $("#asked").replaceChildren();
  $("#send").disabled = false;
  $("#quiz").disabled = false;
}

/** Do something, and say so in a place where it fails. */
async function attempt(place, work) {
  const waiting = element("p", { className: "waiting", "aria-label": say("Reading", "正在读") });
  place.prepend(waiting);
  try {
    await work();
    waiting.remove();
  } catch (error) {
    waiting.replaceWith(troubled(error, () => attempt(place, work)));
  }
}

const choose = (id) => attempt($("#text"), async () => read(await ask(`api/lessons/${id}`, {})));

async function load() {
  await attempt($("#text"), async () => {
    const lessons = await ask("api/lessons");
    $("#lessons").replaceChildren(...lessons.map(({ id, title }) => element("option", { value: id }, title)));
    const first = lessons.find((one) => one.language === say("en", "zh")) ?? lessons[0];
    $("#lessons").value = first.id;
    read(await ask(`api/lessons/${first.id}`, {}));
  });
}

/** A place in the text as a button that leads there. */
function placeOf({ text, start, end }, number) {
  const go = () => {
    mark(start, end, $("#article"));
    $("#article").scrollIntoView({ block: "center" });
  };
  return element("button", { className: `plain place${number === 1 ? " best" : ""}`, type: "button", onclick: go },
    element("b", {}, `[${number}]`), element("span", {}, text.replace(/ *\n */g, " ")));
}

function answered(question, places) {
  const shown = element("div", { className: "answer" }, element("h3", { className: "text" }, question));
  if (places.length) shown.append(...places.map((one, at) => placeOf(one, at + 1)));
  else shown.append(element("p", {}, say("The text does not say.", "课文里没有说。")));
  $("#answers").prepend(shown);
  if (places.length) mark(places[0].start, places[0].end, $("#article"));
}

/** A sentence with a gap, and what becomes of an answer. */
function asked({ before, after, word, start, end }) {
  const input = element("input", { type: "text", autocomplete: "off", "aria-label": say("The missing word", "缺的词") });
  const verdict = element("p", { role: "status" });
  const judge = (event) => {
    event.preventDefault();
    const isRight = input.value.trim().toLowerCase() === word.toLowerCase();
    verdict.className = isRight ? "right" : "";
    verdict.textContent = isRight ? say("Right!", "对！") : say(`Not quite: it is “${word}”.`, `不对：是“${word}”。`);
    mark(start, end, $("#article"));
  };
  const form = element("form", { className: "row", onsubmit: judge },
    element("div", { className: "grow" }, input), element("button", { type: "submit" }, say("Check", "看看对不对")));
  const gap = element("span", { className: "blank" }, "\u2003\u2003\u2003");
  $("#asked").replaceChildren(element("div", { className: "answer" },
    element("p", { className: "text" }, before, gap, after), form, verdict));
  input.focus({ preventScroll: true });
}

$("#lessons").addEventListener("change", (event) => choose(event.target.value));
$("#ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = $("#question").value.trim();
  if (!question || $("#send").disabled) return;
  $("#question").value = "";
  $("#send").disabled = true;
  await attempt($("#answers"), async () => answered(question, await ask("api/ask", { text: open.id, question })));
  $("#send").disabled = false;
});
$("#quiz").addEventListener("click", () => attempt($("#asked"), async () => {
  asked(await ask("api/quiz", { text: open.id, number: next }));
  next += 1;
}));
$("#own").addEventListener("click", () => $("#dialog").showModal());
$("#close").addEventListener("click", () => $("#dialog").close());
$("#paste").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [file] = $("#file").files;
  const pasted = $("#pasted").value;
  $("#wrong").replaceChildren();
  if (!file && !pasted.trim()) {
    $("#wrong").append(troubled(new Error(say("Paste a text, or choose a file.", "请粘贴文章，或选择文件。"))));
    return;
  }
  await attempt($("#wrong"), async () => {
    read(file ? await ask(`api/files?name=${encodeURIComponent(file.name)}`, file) : await ask("api/texts", { text: pasted }));
    $("#lessons").selectedIndex = -1;
    $("#dialog").close();
    $("#paste").reset();
  });
});
begin();
load();
