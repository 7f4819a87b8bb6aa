"""The documentation is true: its Python runs, its commands parse, its links lead somewhere, its pages are current."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import huggingface_hub
import pytest
import typer
from typer.main import get_command

from hub_server import Hub
from llmasos.cli import VERBS
from tiny import save_tiny_bert

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
    with Hub(repos={"bert-base-uncased": model, "bert-base-chinese": model}) as server:
        yield server


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
    return {"train_data": rows, "test_data": [text for text, _ in rows], "__name__": "docs"}


@pytest.mark.parametrize("page", **named(WITH_PYTHON))
def test_every_python_block_runs(page, reader):
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), reader)


def commands() -> list[tuple[str, str]]:
    lines = [(page, line) for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    found = [(page.name, re.sub(r"\s+#.*", "", line.split("|")[-1]).strip()) for page, line in lines]
    return sorted({(name, line) for name, line in found if line.startswith("llmasos ")})


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_parses(page, line):
    _, verb, *words = shlex.split(line)
    app = typer.Typer(add_completion=False)
    app.command(verb)(importlib.import_module(f"llmasos.cli.{verb}").run)
    assert verb in VERBS
    get_command(app).make_context(verb, words)  # raises on an option that there is not


@pytest.mark.parametrize("page", **named(PAGES))
def test_every_link_leads_to_a_file(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", **named(TWICE))
def test_both_languages_have_the_same_sections_and_code(page):
    other = page.with_suffix(".zh-CN.md")
    heads = [re.findall(r"^#+", file.read_text(encoding="utf-8"), re.MULTILINE) for file in (page, other)]
    assert heads[0] == heads[1]
    assert len(blocks(page, "python")) == len(blocks(other, "python"))
    calls = [
        [line.split("#")[0].strip() for block in blocks(file, "sh") for line in block.splitlines()]
        for file in (page, other)
    ]
    assert len(calls[0]) == len(calls[1])
    assert [line for line in calls[0] if line.startswith("make")] == [
        line for line in calls[1] if line.startswith("make")
    ]


def test_the_reference_pages_are_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "reference" / "generate.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    for name, page in {"cli.md": made.cli, "options.md": made.options}.items():
        assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == page(), f"run {spec.origin}"


def test_every_folder_of_the_package_is_in_the_readmes_tree():
    folders = {path.parent.name for path in (ROOT / "src" / "llmasos").glob("*/*.py")}
    for name in ("README.md", "README.zh-CN.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert {folder for folder in folders if f"{folder}/" not in text} == set(), name
