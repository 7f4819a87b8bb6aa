"""The shape of the package, read from its syntax trees: who may import whom, and where code must not go.

The picture and the reasons are in docs/architecture.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "llmasos"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# From left to right: a file may import what stands in its own place or further right, never left.
LAYERS = (
    ("__init__", "__main__"),
    ("cli", "progress"),
    ("llm",),
    ("apps",),
    ("client",),
    (
        "conversion",
        "deployment",
        "edge",
        "expected",
        "export",
        "hosting",
        "opening",
        "rehearsal",
        "releasing",
        "replicas",
        "sending",
        "training",
        "verification",
    ),
    ("protocols", "serving"),
    ("certificate", "cluster", "evaluation", "golden", "prediction", "retrieval", "saving"),
    ("engines", "generation"),
    (
        "architectures",
        "backends",
        "decoders",
        "exporters",
        "frameworks",
        "devices",
        "instances",
        "loading",
        "scratch",
        "sizing",
        "supply",
        "targets",
    ),
    ("tasks",),
    ("metrics",),
    ("loaders", "reporters", "runs", "sources", "stores", "data"),
    ("core", "errors"),
)
PLACE = {name: place for place, layer in enumerate(LAYERS) for name in layer}
PLUGIN_KINDS = (
    "architectures", "backends", "decoders", "engines", "exporters", "loaders", "protocols", "reporters", "sources",
    "stores", "targets", "tasks",
)  # fmt: skip

# Each needs a reason. finetune(progress=True) draws the run with the terminal's own renderer.
EXCEPTIONS = {("llm.py", "progress")}

every_file = pytest.mark.parametrize("file", FILES)


class Import(NamedTuple):
    """One module of this package that a file imports, as parts: ("core", "errors")."""

    parts: tuple[str, ...]
    line: int


def tree(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"), file)


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk everything but ``if TYPE_CHECKING:`` blocks, which never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from running_nodes(other)
            continue
        yield child
        yield from running_nodes(child)


def own_imports(file: str) -> list[Import]:
    """Return the relative imports of a file as modules of the package."""
    folder = Path(file).parent.parts
    found = []
    for node in running_nodes(tree(file)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*folder[: len(folder) + 1 - node.level], *(node.module or "").split("."))
            base = tuple(part for part in base if part)
            # "from . import x" and "from ..core import plugins" name modules, not names in them.
            names = [(*base, name.name) for name in node.names] if is_folder(base) else [base]
            names = [parts for parts in names if parts != ("__version__",)]  # a constant, no dependency
            found += [Import(parts if parts[0] in PLACE else ("__init__",), node.lineno) for parts in names]
    return found


def is_folder(parts: tuple[str, ...]) -> bool:
    return PACKAGE.joinpath(*parts).is_dir()


def top(file: str) -> str:
    """Return the first part of a file's place: the folder, or the module's own name."""
    return Path(file).parts[0].removesuffix(".py")


def lines_of(file: str, wanted: type[ast.AST], text: str) -> list[int]:
    nodes = [node for node in running_nodes(tree(file)) if isinstance(node, wanted)]
    return [node.lineno for node in nodes if ast.unparse(node) == text]  # type: ignore[attr-defined]


@every_file
def test_imports_go_one_way(file: str) -> None:
    wrong = [
        f"line {line}: {top(file)} imports {'.'.join(parts)}, which stands left of it"
        for parts, line in own_imports(file)
        if (file, parts[0]) not in EXCEPTIONS and PLACE[parts[0]] < PLACE[top(file)]
    ]
    assert wrong == []


@every_file
def test_every_file_has_a_place_in_the_layers(file: str) -> None:
    assert top(file) in PLACE, "a new folder or module needs a place in LAYERS and in docs/architecture.md"


@every_file
def test_the_package_never_imports_itself_by_name(file: str) -> None:
    """``from llmasos import x`` inside makes every module depend on the front door."""
    imported = {
        name
        for node in ast.walk(tree(file))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    assert [name for name in imported if name.split(".")[0] == "llmasos"] == []


@every_file
def test_a_plugin_does_not_import_its_neighbours(file: str) -> None:
    """It may use its kind's ``base`` and files with an underscore, which are shared parts, not plug-ins."""
    if top(file) not in PLUGIN_KINDS or Path(file).stem == "base":
        return
    neighbours = [parts for parts, _ in own_imports(file) if parts[0] == top(file)]
    assert [parts for parts in neighbours if len(parts) > 1 and parts[1] != "base" and parts[1][0] != "_"] == []


@every_file
def test_no_plugin_is_named_in_a_comparison_outside_its_file(file: str) -> None:
    plugins = {
        path.stem.replace("_", "-"): path.relative_to(PACKAGE).as_posix()
        for kind in PLUGIN_KINDS
        for path in (PACKAGE / kind).glob("*.py")
        if path.stem != "base" and path.stem[0] != "_"
    }
    named = [
        f"line {node.lineno}: {part.value!r}"
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
        if part.value in plugins and plugins[part.value] != file
    ]
    assert named == []


@every_file
def test_only_the_doors_print_and_exit(file: str) -> None:
    if top(file) in ("cli", "progress", "__main__"):
        return
    calls = [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]
    named = [(ast.unparse(call.func), call.lineno) for call in calls]
    assert [hit for hit in named if hit[0] in ("print", "exit", "quit", "sys.exit", "os._exit")] == []


@every_file
def test_the_environment_is_read_in_one_place(file: str) -> None:
    if file == "core/environment.py" or top(file) == "cli":
        return
    assert lines_of(file, ast.Attribute, "os.environ") + lines_of(file, ast.Attribute, "os.getenv") == []


@every_file
def test_nothing_can_read_a_pickle_or_run_remote_code(file: str) -> None:
    nodes = list(ast.walk(tree(file)))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert modules.isdisjoint({"pickle", "dill", "cloudpickle", "shelve", "joblib", "marshal"})
    assert lines_of(file, ast.Attribute, "torch.load") == []
    keywords = [node for node in nodes if isinstance(node, ast.keyword) and node.arg == "trust_remote_code"]
    assert [ast.unparse(node) for node in keywords if ast.unparse(node.value) != "False"] == []


@every_file
def test_no_file_is_a_drawer_for_everything(file: str) -> None:
    assert Path(file).stem not in ("utils", "util", "helpers", "common", "misc")


@every_file
def test_files_stay_under_600_lines(file: str) -> None:
    assert len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) < 600
