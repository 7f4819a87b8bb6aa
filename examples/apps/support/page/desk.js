/** The desk's page: what the customer writes, what the desk answers and why, and the questions that it knows. */

import { $, ask, begin, element, say, troubled } from "./kit.js";

const EXAMPLES = {
  en: ["Where is my parcel?", "The kettle stays dark when I press the button", "I was charged twice this month", "I want to talk to a human"],
  zh: ["我的包裹到哪了", "水壶按了开关没反应", "这个月扣了我两次钱", "我要找人工客服"],
};
const INTENTS = {
  delivery: "配送", refund: "退换货", billing: "账单", account_access: "账号", technical_problem: "故障",
  cancellation: "取消", product_question: "商品咨询", feedback: "反馈",
};
let entries = [];

/** Show what the desk knows, in the language of the page. */
function showFaq() {
  $("#faq").replaceChildren(...entries.filter((one) => one.language === say("en", "zh")).map(({ id, title, text }) =>
    element("details", { id }, element("summary", {}, title), element("p", { className: "text" }, text))));
  $("#chips").replaceChildren(...EXAMPLES[say("en", "zh")].map((text) =>
    element("button", { className: "chip", type: "button", onclick: () => send(text) }, text)));
}

/** Open the entry that an answer cites. */
function cite(id) {
  if (!$(`#${id}`)) document.querySelector("#language").click();
  for (const one of document.querySelectorAll(".cited")) one.classList.remove("cited");
  const entry = $(`#${id}`);
  entry.open = true;
  entry.classList.add("cited");
  entry.scrollIntoView({ block: "center" });
}

function intentOf({ label, score }) {
  return element("div", { className: "intent" }, say("understood as", "理解为"),
    element("b", {}, say(label.replace("_", " "), INTENTS[label] ?? label)),
    element("meter", { min: 0, max: 1, value: score, "aria-label": say("certainty", "把握") }), score.toFixed(2));
}

function ticketOf({ number, reason }) {
  return element("div", { className: "ticket" }, element("b", {}, `#${number}`),
    element("span", {}, say("A colleague takes over, and writes to you.", "同事会接手，并给您回信。")),
    element("small", {}, reason));
}

function replyOf({ intent, answer, citation, ticket }) {
  const shown = element("div", { className: "reply" });
  if (intent) shown.append(intentOf(intent));
  if (answer) shown.append(element("p", { className: "text answer" }, answer));
  if (citation) {
    shown.append(element("button", { className: "chip source", type: "button", onclick: () => cite(citation.id) },
      element("b", {}, "[1]"), citation.title));
  }
  if (ticket) shown.append(ticketOf(ticket));
  return shown;
}

/** Ask the desk. A question that failed can be asked again. */
async function send(text, isAgain = false) {
  $("#examples").hidden = true;
  if (!isAgain) $("#talk").append(element("p", { className: "said text" }, text));
  const waiting = element("p", { className: "waiting", "aria-label": say("The desk is reading", "正在查看") });
  $("#talk").append(waiting);
  $("#send").disabled = true;
  try {
    waiting.replaceWith(replyOf(await ask("api/ask", { message: text })));
  } catch (error) {
    waiting.replaceWith(troubled(error, () => send(text, true)));
  } finally {
    $("#send").disabled = false;
    $("#talk").lastElementChild.scrollIntoView({ block: "nearest" });
  }
}

async function load() {
  try {
    entries = await ask("api/faq");
    showFaq();
  } catch (error) {
    $("#faq").replaceChildren(troubled(error, load));
  }
}

$("#form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("#message").value.trim();
  if (!text || $("#send").disabled) return;
  $("#message").value = "";
  send(text);
});
$("#message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("#form").requestSubmit();
  }
});
document.addEventListener("spoken", showFaq);
begin();
load();
