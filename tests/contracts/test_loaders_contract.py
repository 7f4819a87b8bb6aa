"""What every loader promises, whatever it reads.

A loader takes part through a function ``written_<name>`` here (dashes as underscores), which returns a file of its kind
that says a sentence; "{}" stands for it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmasos.core import plugins
from llmasos.core.errors import DataError
from llmasos.loaders.base import Loader

NAMES = plugins.names("loaders")
SENTENCE = "Parcels leave on Monday."


def written_plain_text(sentence: str) -> bytes:
    return f"{sentence}\r\nMore.\n".encode()


def written_markdown(sentence: str) -> bytes:
    return f"# Sending\n\n{sentence}\n".encode()


def written_html(sentence: str) -> bytes:
    return f"<title>Sending</title><p>{sentence}</p>".encode()


def written_pdf(sentence: str) -> bytes:
    fpdf = pytest.importorskip("fpdf")
    pytest.importorskip("pypdf")
    made = fpdf.FPDF()
    made.set_title("Sending")
    made.set_font("helvetica", size=12)
    for text in (sentence, "", "More."):
        made.add_page()
        if text:
            made.cell(text=text)
    return bytes(made.output())


@pytest.fixture(params=NAMES)
def loader(request: pytest.FixtureRequest) -> Loader:
    return plugins.load("loaders", request.param)


@pytest.fixture
def content(loader: Loader) -> bytes:
    (name,) = (one for one in NAMES if plugins.load("loaders", one) is loader)
    write = globals().get(f"written_{name.replace('-', '_')}")
    if write is None:
        pytest.skip(f"no written_{name} in this file")
    return write(SENTENCE)


def test_a_good_file_is_read(loader, content):
    documents = loader.read(content, "folder/name")
    assert SENTENCE in documents[0].text
    assert {one.source for one in documents} == {"folder/name"}
    assert len({one.id for one in documents}) == len(documents)
    assert all(one.text.strip() == one.text.strip("\n ") and "\r" not in one.text for one in documents)


@pytest.mark.parametrize("damage", ["nothing", "spaces", "noise", "cut"])
def test_a_broken_file_is_refused_in_one_line_or_read(loader, content, damage):
    broken = {"nothing": b"", "spaces": b" \n\t ", "noise": bytes(range(256)) * 9, "cut": content[: len(content) // 2]}
    if damage == "cut":
        try:
            assert all(one.text.strip() for one in loader.read(broken[damage], "name"))
        except DataError:
            return
    else:
        with pytest.raises(DataError) as caught:
            loader.read(broken[damage], "name")
        assert "\n" not in caught.value.message


def test_endings_are_small_and_its_own(loader):
    others = [plugins.load("loaders", name) for name in NAMES]
    assert all(ending.startswith(".") and ending == ending.lower() for ending in loader.endings)
    assert all(sum(ending in other.endings for other in others) == 1 for ending in loader.endings)


@pytest.mark.parametrize("name", NAMES)
def test_loading_a_loader_imports_no_heavy_library(name):
    code = (
        f"import sys; from llmasos.core import plugins; plugins.load('loaders', {name!r});"
        "sys.exit(any(heavy in sys.modules for heavy in ('torch', 'numpy', 'bs4', 'pypdf', 'charset_normalizer')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
