"""The core of a support desk, written three times: with LLMasOS, with LangChain, with the openai package alone.

Each tells the intent of a message, hands it to people where it must, looks the FAQ up, and answers with citations; the
files are in ``desks/``. All three are run against one server and must agree: the intent, whether a person is called,
and the passages that the answer stands on. Then their lines are counted, without blank lines, comments and docstrings;
imports are counted apart. Only the first keeps orders inside a document apart from the prompt, reads other kinds of
files, and remembers what it has embedded; the others would be longer with that.
"""

from __future__ import annotations

import ast
import importlib
import io
import sys
import tokenize
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import child, data, harness
from .records import Column, Result, Run, goal, middle
from .serve import server

DESKS = {"llmasos": (), "langchain": ("langchain_openai", "langchain_community", "langchain_text_splitters"),
         "openai": ("openai", "httpx")}  # fmt: skip
FOLDER = Path(__file__).parent / "desks"
SAMPLES = harness.ROOT / "src" / "llmasos" / "samples"
QUESTIONS = (
    "When will my parcel arrive?", "I want to return the lamp and get my money back.", "I forgot my password.",
    "Where is the invoice for May?", "Your staff were wonderful, thank you!", "The app crashes when I open it.",
    "Please cancel my order from today.", "Does the blue bicycle helmet fit a child of six?",
)  # fmt: skip


def main() -> None:
    """Run the desks and count their lines, or be one of them."""
    parser = harness.parser(__doc__, seeds=1)
    parser.add_argument("--model", type=Path, help="a classifier of intents to use instead of training one")
    parser.add_argument("--url", help="where the server is, for a child")
    options = parser.parse_args()
    if options.child:
        child.report(train(Path(options.work)) if options.child == "train" else run(options.child, options.url))
        return
    names = harness.chosen(list(DESKS), options.only)
    with harness.workspace() as work:
        if options.model:
            (work / "intents").symlink_to(options.model.resolve(), target_is_directory=True)
        else:
            harness.run_one(harness.child("newcomer", "train", work), 0, work)
        models = [f"intents={work / 'intents'}", f"embed={data.model_folder()}", "chat=starter-chat"]
        with server([sys.executable, "-m", "llmasos", "serve", *models, "--port"]) as port:
            desks = [harness.child("newcomer", name, work, "--url", f"http://127.0.0.1:{port}") for name in names]
            runs = harness.measure(desks, options.seeds, work)
    harness.finish(result(names, [counted(one) for one in compared(runs)]), options)


def train(work: Path) -> dict[str, Any]:
    """Tune MiniLM to tell the intents of the sample data."""
    from llmasos import LLM, TextClassificationTask

    model = LLM.from_pretrained(data.model_folder())
    model.finetune(TextClassificationTask(), SAMPLES / "support_en.jsonl", epochs=4, seed=0, progress=False,
                   output=work / "intents")  # fmt: skip
    return {}


def run(name: str, url: str) -> dict[str, Any]:
    """Ask one desk all questions."""
    child.require(*DESKS[name])
    desk = importlib.import_module(f"benchmarks.desks.{name}_desk").Desk(url, str(FOLDER / "faq"))
    return {"replies": [desk.reply(question) for question in QUESTIONS]}


def compared(runs: list[Run]) -> list[Run]:
    """Add how many questions a desk answers as the first one does, but for the words."""
    known = next((one.values["replies"] for one in runs if "replies" in one.values), [])
    same = ("intent", "escalate", "passages")
    out = []
    for one in runs:
        pairs = list(zip(known, one.values.get("replies", ()), strict=False))
        agree = sum(all(here.get(key) == there.get(key) for key in same) for here, there in pairs)
        people = sum(there["escalate"] for _, there in pairs)
        out.append(replace(one, values={**one.values, "agree": agree, "people": people, "asked": len(QUESTIONS)}))
    return out


def counted(one: Run) -> Run:
    """Add the lines of a desk's file."""
    code, imports = lines_of((FOLDER / f"{one.candidate}_desk.py").read_text(encoding="utf-8"))
    return replace(one, values={**one.values, "lines": code, "imports": imports})


def lines_of(source: str) -> tuple[int, int]:
    """Count lines that hold code: those of imports apart; blank lines, comments and docstrings do not count."""
    idle = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
            tokenize.ENCODING)  # fmt: skip
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in idle
        for line in range(token.start[0], token.end[0] + 1)
    }
    imports, docs = set[int](), set[int]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docs |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines - imports - docs), len(lines & imports)


def result(names: list[str], runs: list[Run]) -> Result:
    """Put the table together."""
    ours = middle(runs, "llmasos", "lines")
    others = {name: middle(runs, name, "lines") for name in names if name != "llmasos"}
    agree = [one.values["agree"] for one in runs if "replies" in one.values]
    return Result(
        name="newcomer",
        title="The core of a support desk: lines of code",
        columns=[
            Column("lines", "lines", 0),
            Column("imports", "imports", 0),
            Column("agree", "questions answered alike", 0),
            Column("asked", "asked", 0),
            Column("people", "handed to people", 0),
        ],
        candidates=names,
        runs=runs,
        baseline="openai" if "openai" in names else None,
        goals=[
            *(goal(f"no longer than with {name}", ours and theirs and theirs / ours, 1.0, shown="{:.2f}x")
              for name, theirs in others.items()),
            goal("all desks agree", float(min(agree)) if agree else None, len(QUESTIONS), shown="{:.0f}"),
        ],
        notes=["alike: intent, whether a person is called, and the passages; the words are the chat model's own"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
