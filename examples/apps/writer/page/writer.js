/** The studio's page: a sheet, a wish, and variants that are written side by side while you watch. */

import { Client } from "./llmasos.js";
import { $, ask, begin, element, say, troubled } from "./kit.js";

const OPENINGS = {
  en: ["It was the first morning of spring, and the old lighthouse", "My dear sister, you will not believe whom I met", "The recipe had been in the family for"],
  zh: ["开春的第一个早晨，老灯塔", "亲爱的姐姐，你一定猜不到我遇见了谁", "这张方子在我们家传了"],
};
const client = new Client({ url: location.origin, timeout: 600 });
let stopping = null; // aborts what is being written

/** One variant: a card whose text grows. */
function cardOf(number) {
  const text = element("p", { className: "text" });
  const use = element("button", { className: "plain", type: "button", disabled: true }, say("Take it", "用这个"));
  const card = element("article", { className: "card variant" },
    element("h2", {}, say(`Variant ${number}`, `写法 ${number}`)), text, element("div", { className: "row" }, use));
  $("#variants-shown").append(card);
  return { card, text, use };
}

/** Put a variant into the sheet: behind what is there, or instead of it. */
function take(kind, before, written) {
  const isJoined = !before || /[\s一-鿿，。！？、]$/.test(before) || /^[\s一-鿿，。！？、]/.test(written);
  const space = isJoined ? "" : " ";
  $("#text").value = kind === "rewrite" ? written.trim() : before + space + written;
  count();
  $("#text").focus();
}

async function write(number, { card, text, use }, { kind, before, messages, options }) {
  text.textContent = "";
  text.classList.add("waiting");
  try {
    const stream = client.stream(messages, { ...options, seed: number });
    for await (const piece of stream) text.append(piece);
  } catch (error) {
    if (!options.signal.aborted) {
      const again = () => write(number, { card, text, use }, { kind, before, messages, options: { ...options, signal: renewed() } }).finally(rest);
      card.append(troubled(error, again));
    }
  } finally {
    text.classList.remove("waiting");
    use.disabled = !text.textContent.trim();
    use.onclick = () => take(kind, before, text.textContent);
  }
}

/** Begin with something that the stop button ends. */
function renewed() {
  stopping ??= new AbortController();
  $("#write").disabled = true;
  $("#stop").disabled = false;
  return stopping.signal;
}

function rest() {
  stopping = null;
  $("#write").disabled = false;
  $("#stop").disabled = true;
}

async function grant() {
  const before = $("#text").value;
  const kind = $("[name=kind]:checked").value;
  const signal = renewed();
  $("#trouble").replaceChildren();
  $("#variants-shown").replaceChildren();
  try {
    const { messages } = await ask("api/messages", { kind, text: before, style: $("#style").value });
    const options = { model: $("#model").value, temperature: Number($("#temperature").value), max_tokens: Number($("#length").value), signal };
    const cards = Array.from({ length: Number($("#variants").value) }, (_, at) => cardOf(at + 1));
    await Promise.all(cards.map((card, at) => write(at + 1, card, { kind, before, messages, options })));
  } catch (error) {
    $("#trouble").replaceChildren(troubled(error, grant));
  } finally {
    rest();
  }
}

async function findModels() {
  try {
    const models = await client.models();
    const writers = models.filter((one) => one.writes !== false);
    if (!writers.length) throw new Error(say("The server has no model that writes.", "服务器上没有会写字的模型。"));
    $("#model").replaceChildren(...writers.map(({ id }) => element("option", { value: id }, id)));
    $("#model-field").hidden = writers.length < 2;
    showModel();
    $("#write").disabled = false;
  } catch (error) {
    $("#trouble").replaceChildren(troubled(error, findModels));
  }
}

function showModel() {
  const name = $("#model").value;
  if (name) $("#model-name").textContent = say(`written by ${name}`, `由 ${name} 写作`);
  $("#toy").hidden = name !== "starter-chat";
}

function count() {
  const text = $("#text").value;
  const size = (text.match(/[一-鿿]|[^\s一-鿿]+/g) ?? []).length; // each Chinese character, and each other word
  $("#count").textContent = say(`${size} words`, `${size} 字`);
}

function showOpenings() {
  $("#openings").replaceChildren(...OPENINGS[say("en", "zh")].map((text) =>
    element("button", { className: "chip", type: "button", onclick: () => {
      $("#text").value = text;
      count();
    } }, `${text}…`)));
  count();
  showModel();
}

const showStyle = () => {
  $("#style-field").hidden = $("[name=kind]:checked").value !== "rewrite";
};
for (const output of document.querySelectorAll("output")) {
  const slider = document.getElementById(output.htmlFor.value);
  const show = () => {
    output.value = slider.value;
  };
  slider.addEventListener("input", show);
  show();
}
$("#wish").addEventListener("submit", (event) => {
  event.preventDefault();
  grant();
});
$("#wish").addEventListener("change", showStyle);
$("#stop").addEventListener("click", () => stopping?.abort());
$("#text").addEventListener("input", count);
$("#model").addEventListener("change", showModel);
document.addEventListener("spoken", showOpenings);
begin();
showStyle();
findModels();
