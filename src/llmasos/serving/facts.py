"""Which engines a server computes with, and which of them ``--engine auto`` takes: facts, with their reasons.

A line of ``FACTS`` is what was measured, so a new measurement changes a line and no code. Of the lines for a kind of
model, the first whose precision is wanted and whose packages are there is taken; ``llmasos doctor`` prints it.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from ..core import plugins
from ..core.errors import MissingExtraError, UsageError, did_you_mean
from ..exporters.base import KINDS, Exporter

AUTO = "auto"


@dataclass(frozen=True)
class Way:
    """How a model comes to an engine.

    Args:
        target: the format that it is exported to; None where the engine opens the model's own folder.
        batches: whether the engine chooses tokens and batches requests by itself (a ``Batcher``).
        requires, extra: modules that the engine needs besides the format's, and the extra that brings them.
        program: a program that it runs, which must be on the path.
        kinds: kinds of models that it runs; those that its format holds if not given.
    """

    target: str | None = None
    batches: bool = False
    requires: tuple[str, ...] = ()
    extra: str = ""
    program: str = ""
    kinds: tuple[str, ...] = ()

    @property
    def exporter(self) -> Exporter | None:
        """What writes its format."""
        return None if self.target is None else plugins.load("exporters", self.target)

    @property
    def own(self) -> bool:
        """Whether it computes with the model as it is: nothing is exported, and nothing else is started."""
        return self.target is None and not self.batches

    def runs(self, kind: str) -> bool:
        """Say whether it runs such models."""
        exporter = self.exporter
        return kind in self.kinds if self.kinds or exporter is None else kind in exporter.precisions

    def lacks(self) -> str:
        """Return what is missing for it here, as what one types to get it; empty where nothing is."""
        exporter = self.exporter
        if exporter is not None and _absent(exporter.requires):
            return f"pip install 'llmasos[{exporter.extra}]'"
        if _absent(self.requires):
            return f"pip install 'llmasos[{self.extra}]'" if self.extra else f"pip install {self.requires[0]}"
        if self.program and shutil.which(self.program) is None:
            return f"the program {self.program} on the path"
        return ""


def _absent(modules: tuple[str, ...]) -> bool:
    return any(importlib.util.find_spec(name) is None for name in modules)


OWN = "torch"
"""What computes where nothing else is asked for."""

ENGINES: Mapping[str, Way] = {
    OWN: Way(kinds=KINDS),
    "onnxruntime": Way("onnx"),
    "openvino": Way("openvino"),
    "openvino-genai": Way("openvino", True, ("openvino_genai",), "openvino-genai", kinds=("decoder",)),
    "ctranslate2": Way("ctranslate2"),
    "llama-cpp": Way("gguf"),
    "llama-server": Way("gguf", True, program="llama-server", kinds=("decoder",)),
    "vllm": Way(None, True, program="vllm", kinds=("decoder",)),
}
"""Engines by the names that ``--engine`` takes."""


@dataclass(frozen=True)
class Fact:
    """That an engine is the one to take for a kind of model.

    Args:
        kind: of ``exporters.base.KINDS``.
        engine: of ``ENGINES``.
        why: in words, with numbers.
        precisions: in which it is; those that keep the answers.
    """

    kind: str
    engine: str
    why: str
    precisions: tuple[str, ...] = ("float32", "bfloat16")


FACTS: tuple[Fact, ...] = (
    Fact("encoder", OWN, "it computes no padding: 1.3 times the sentences of OpenVINO in bfloat16, for 64 clients"),
    Fact("decoder", "openvino-genai", "1.6, 2.1 and 1.9 times torch's tokens for 1, 8 and 32 clients; it enforces no "
         "schemas, gives no log probabilities and shares no prefixes", ("bfloat16",)),
    Fact("decoder", OWN, "it shares prefixes and enforces schemas"),
    Fact("encoder-decoder", OWN, "it streams and draws; CTranslate2 writes 1.0 to 2.2 times its tokens, "
         "each answer in one piece"),
)  # fmt: skip
"""For each kind of model the fastest engine first; the last line of a kind is one that needs nothing more.

The numbers are of ``python -m benchmarks.serve`` and ``engines``, in docs/benchmarks.md.
"""


@dataclass(frozen=True)
class Chosen:
    """What computes, why, and what one types to get better ones."""

    engine: str
    why: str
    better: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([f"{self.engine}: {self.why}", *self.better])


def chosen(kind: str, precision: str, device: str = "cpu") -> Chosen:
    """Return what ``auto`` takes here for a kind of model, in a precision, where torch computes on a device."""
    if device != "cpu":
        return Chosen(OWN, f"it computes on {device}, and the facts are of processors")
    better: list[str] = []
    for fact in FACTS:
        if fact.kind != kind or precision not in fact.precisions:
            continue
        if not (lacks := ENGINES[fact.engine].lacks()):
            return Chosen(fact.engine, fact.why, tuple(better))
        better.append(f"better with {fact.engine} ({fact.why}), which lacks here: {lacks}")
    return Chosen(OWN, f"nothing better is known for {kind} models in {precision}", tuple(better))


def check(engine: str | None, quantize: str | None) -> None:
    """Refuse an engine that is unknown, or whose packages are not here, before anything is opened.

    Raises:
        UsageError: there is no such engine, or a number format is asked for that nothing would have.
        MissingExtraError: its packages are missing.
    """
    if engine is None or engine == AUTO:
        if quantize is not None:
            raise UsageError(
                f"quantize={quantize} without an engine", hint="such as --engine openvino, which computes it"
            )
        return
    if engine not in ENGINES:
        known = ", ".join([AUTO, *ENGINES])
        raise UsageError(f"engine={engine!r}", hint=f"{did_you_mean(engine, ENGINES)}one of {known}")
    way = ENGINES[engine]
    if quantize is not None and way.target is None:
        raise UsageError(f"quantize={quantize} does nothing with the engine {engine}", hint="leave it out")
    if lacks := way.lacks():
        install = lacks.removeprefix("pip install ")
        if install == lacks:
            raise UsageError(f"the engine {engine} needs {lacks}", hint="install it, or --engine torch")
        raise MissingExtraError(f"the engine {engine}", install=install)
