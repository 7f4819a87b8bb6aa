"""The documentation is true: its Python runs, its commands parse, its links lead somewhere, its pages are current."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest

from hub_server import Hub
from llmasos.cli import VERBS, command_of
from servers import with_tools
from tiny import save_tiny, save_tiny_bert

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TWICE = [page for page in PAGES if page.with_suffix(".zh-CN.md").exists()]


def named(pages: list[Path]) -> dict[str, list]:
    return {"argvalues": pages, "ids": [str(page.relative_to(ROOT)) for page in pages]}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.name != "CHANGELOG.md"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    model = save_tiny_bert(tmp_path_factory.mktemp("hub") / "model", max_length=128)
    letters = "".join(
        sorted(set((ROOT / "src" / "llmasos" / "samples" / "support_zh.jsonl").read_text()) - set(map(chr, range(128))))
    )
    chinese = save_tiny_bert(tmp_path_factory.mktemp("hub") / "chinese", max_length=128, letters=letters)
    decoder = save_tiny(tmp_path_factory.mktemp("hub") / "decoder", "AutoModelForCausalLM", max_length=512)
    translator = save_tiny(tmp_path_factory.mktemp("hub") / "translator", "AutoModelForSeq2SeqLM", max_length=128)
    caller = with_tools(tmp_path_factory.mktemp("hub") / "caller")
    models = {"Qwen/Qwen2.5-0.5B-Instruct": caller, "bert-base-uncased": model, "bert-base-chinese": chinese,
              "HuggingFaceTB/SmolLM2-135M-Instruct": decoder,
              "Helsinki-NLP/opus-mt-en-de": translator, "facebook/bart-base": translator}  # fmt: skip
    with Hub(repos=models) as server:
        yield server


ROWS = {
    "names": lambda i: {"tokens": ["Ada", str(i), "in", "Rome"], "tags": ["B-PER", "O", "O", "B-LOC"]},
    "questions": lambda i: {"question": "Who?", "context": f"{i} by Ada.",
                            "answers": {"text": ["Ada"], "answer_start": [len(str(i)) + 4]}},
    "pairs": lambda i: {"sentence1": f"parcel {i}", "sentence2": f"order {i % 5}", "score": i % 5},
    "phrases": lambda i: {"en": f"house {i}", "de": f"Haus {i}"},
    "articles": lambda i: {"document": f"The bridge {i} is old. It is closed.", "summary": f"Bridge {i} closed."},
    "programs": lambda i: {"prompt": f"Add {i}.", "completion": f"def f(x):\n    return x + {i}"},
    "preferences": lambda i: {"prompt": f"Where is {i}?", "chosen": "On its way.", "rejected": "No idea."},
    "chats": lambda i: {"instruction": f"Do you ship to {i}?", "output": "We do."},
}  # fmt: skip
"""What the front page's files hold."""


@pytest.fixture
def reader(hub, tmp_path, monkeypatch) -> dict[str, object]:
    """A reader's folder with the files that the pages speak of, and the names that they take as given."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    rows = [("works like a charm", "positive"), ("stopped after two days", "negative")] * 12
    lines = [f"{text} {i},{label}\n" for i, (text, label) in enumerate(rows)]
    Path("reviews.csv").write_text("opinion,verdict\n" + "".join(lines))
    Path("test.csv").write_text("text,label\n" + "".join(lines))
    Path("unlabelled.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in rows[:4]))
    for name, row in ROWS.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(24)))
    Path("book.txt").write_text("".join(f"Line {i} of the book.\n" for i in range(400)))
    Path("page").mkdir()
    Path("page", "index.html").write_text("<!doctype html><title>My app</title>")
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    return vars(module) | {"train_data": rows, "test_data": [text for text, _ in rows]}


def quickly(pages: list[Path]) -> list:
    """Mark Chinese pages as slow: their code is that of the others, which another test holds."""
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks[".zh-CN" in page.name]) for page in pages]


@pytest.mark.parametrize("page", quickly(WITH_PYTHON))
def test_every_python_block_runs(page, reader):
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec", dont_inherit=True), reader)


def commands() -> list[tuple[str, str]]:
    lines = [(page, line) for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    found = [(page.name, re.sub(r"\s+[#>].*", "", line.split("|")[-1]).strip()) for page, line in lines]
    return sorted({(name, line) for name, line in found if line.startswith("llmasos ")})


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_parses(page, line):
    _, verb, *words = shlex.split(line)
    assert verb in VERBS
    command_of(verb).make_context(verb, words).close()  # raises on an option that there is not


@pytest.mark.parametrize("page", **named(PAGES))
def test_every_link_leads_to_a_file(page):
    targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", **named(TWICE))
def test_both_languages_have_the_same_sections_and_code(page):
    other = page.with_suffix(".zh-CN.md")
    heads = [re.findall(r"^#+ ", prose(file), re.MULTILINE) for file in (page, other)]
    assert heads[0] == heads[1]
    for language in ("python", "sh", "csv", "text"):
        here, there = ([neutral(block, language) for block in blocks(file, language)] for file in (page, other))
        assert here == there


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def neutral(block: str, language: str) -> str:
    """Return what both languages share of a block: all but comments, words in print(), and a tree's right half."""
    if language == "text":
        return "\n".join(line.split("   ")[0] for line in block.splitlines())
    if language == "python":
        block = re.sub(r"^( *print\().*$", r"\1...", block, flags=re.MULTILINE)
    return "\n".join(re.sub(r"\s*# .*", "", line).rstrip() for line in block.splitlines())


def test_a_page_that_has_a_chinese_version_is_linked_in_it_by_chinese_pages():
    for page in ROOT.glob("**/*.zh-CN.md"):
        if ".venv" in page.parts:
            continue
        targets = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)\s#]+\.md)\)", prose(page))}
        own = page.with_name(page.name.replace(".zh-CN", "")).resolve()
        assert [t.name for t in targets if t != own and t.with_suffix(".zh-CN.md").exists()] == [], page.name


def test_the_reference_pages_are_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "reference" / "generate.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    for name, page in {"cli.md": made.cli, "options.md": made.options}.items():
        assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == page(), f"run {spec.origin}"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readmes_tree_is_that_of_the_package(name):
    package = ROOT / "src" / "llmasos"
    (tree,) = blocks(ROOT / name, "text")
    lines = [line for line in tree.splitlines() if line.startswith("  ")]
    named = {word for line in lines for word in re.split(r" {3,}", line.strip())[0].split()}
    there = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    there |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named == there
