"""One dataclass per verb: the same names are Python keywords, YAML keys, command-line flags.

A field's ``help`` is what ``--help`` prints and what the reference page shows. An unknown key is an
error with the nearest known one.
"""

from __future__ import annotations

import math
import numbers
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

from . import plugins
from .errors import UsageError, did_you_mean

T = TypeVar("T")


def option(default: T, help: str, *, choices: tuple[str, ...] = (), least: float | None = None,
           most: float | None = None, several: bool = False) -> T:  # fmt: skip
    """Declare a field with its help, its allowed words and its allowed range (ends included).

    ``several``: a list of words, or words with commas between, is one value; the shell gives a flag for each.
    """
    told = {"help": help, "choices": choices, "least": least, "most": most, "several": several}
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class Config:
    """Base of the verbs' options: built from keywords, YAML or ``key=value``, checked once."""

    def __post_init__(self) -> None:
        for item in fields(self):
            _check(item, getattr(self, item.name), type(self))

    @classmethod
    def of(cls, values: Mapping[str, Any], recipe: str | Path | None = None) -> Self:
        """Build from keyword values, which go before a recipe's; unknown names are an error with a suggestion."""
        values = {**(read_recipe(recipe) if recipe else {}), **values}
        known = {item.name: item for item in fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(
                    f"there is no option {name!r}",
                    hint=f"{did_you_mean(name, known)}known: {', '.join(known)}",
                )
        return cls(**{name: _typed(known[name], value, cls) for name, value in values.items()})

    @classmethod
    def checked(cls, name: str, value: Any) -> Any:
        """Convert the value of one option and check it alone, whatever the others are."""
        item = next(item for item in fields(cls) if item.name == name)
        typed = _typed(item, value, cls)
        _check(item, typed, cls)
        return typed

    def to_dict(self) -> dict[str, Any]:
        """Return all options as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """How to fine-tune. Every field has a default that suits a first run."""

    epochs: float = option(3.0, "times that every training row is seen", least=0.0)
    batch_size: int = option(32, "rows per optimiser step", least=1)
    learning_rate: float | None = option(
        None, "peak learning rate; chosen from the model's size if not given", least=0.0
    )
    schedule: str = option(
        "linear", "how the learning rate falls after the warm-up", choices=("linear", "cosine", "constant")
    )
    warmup: float = option(0.06, "share of the steps over which the learning rate rises", least=0.0, most=1.0)
    weight_decay: float = option(0.01, "AdamW weight decay, on matrices only", least=0.0)
    layer_decay: float = option(
        1.0, "factor on the learning rate for each layer further from the output", least=0.0, most=1.0
    )
    gradient_clip: float = option(1.0, "largest norm of the gradient; 0 turns clipping off", least=0.0)
    dropout: float | None = option(None, "dropout probability; the model's own if not given", least=0.0, most=0.9)
    augment: float = option(
        0.0, "share of tokens dropped or swapped in training texts, for small data", least=0.0, most=0.5
    )
    max_length: int | None = option(None, "longest text in tokens; the model's limit if not given", least=8)
    max_steps: int | None = option(None, "stop after so many optimiser steps", least=1)
    within: str | None = option(
        None, "end in this time, such as 10min or 1h30min, with the best model that it allows; what is given up is said"
    )
    micro_batch_size: int | None = option(
        None, "rows computed at once; the step's result does not depend on it", least=1
    )
    evaluations: int = option(1, "evaluations per epoch", least=1)
    metric: str | None = option(None, "metric that picks the best model; the task's own if not given")
    patience: int | None = option(None, "stop after so many evaluations without a better metric", least=1)
    eval_split: float = option(0.1, "share of the rows set aside when no evaluation data is given", least=0.0, most=0.9)
    allow_truncated: float = option(0.01, "share of the rows that may be cut to max_length", least=0.0, most=1.0)
    allow_dropped: float = option(
        0.01, "share of the rows that may be left out, such as empty ones", least=0.0, most=1.0
    )
    allow_unknown: float | None = option(
        None, "share of the tokens that the tokenizer may not know; a half if not given, in language modeling and "
        "fill-mask 1 %", least=0.0, most=1.0,
    )  # fmt: skip
    precision: str = option(
        "auto", "number format of the work; weights are always kept in float32", choices=("auto", "float32", "bfloat16")
    )
    speed: str = option(
        "auto",
        "how the same is computed faster: auto as far as it is proven, measure the fastest of what was tried on this "
        "data first, plain as transformers does it; or some of packed, buckets, bf16, compile, cache with commas",
    )
    device: str = option("auto", "where to run: auto, cpu, cuda, mps, xpu")
    backend: str = option(
        "auto",
        "how processes train together: single, ddp (each holds the model), fsdp (it is cut up between them); auto is "
        "ddp where several were started",
    )
    trainable: str = option(
        "all",
        "what is trained: all, head, or last-N or top:N (head and last N layers); the rest stays as it is",
    )
    activation_cache: str = option(
        "auto",
        "keep what frozen layers make of each row, so that they run once: auto where the result is the same, on also "
        "where they drop out (they then do not), off never",
        choices=("auto", "on", "off"),
    )
    adapter: str = option(
        "none",
        "train all weights (none), or a small adapter on frozen ones: lora, or dora, which learns lengths apart",
        choices=("none", "lora", "dora"),
    )
    adapter_rank: int | None = option(None, "rank of the adapter; 8 if not given", least=1)
    adapter_alpha: float | None = option(
        None, "scale of the adapter, as alpha / rank; 2 x rank if not given", least=0.01
    )
    adapter_dropout: float | None = option(
        None, "dropout before the adapter, in training; 0 if not given", least=0.0, most=0.9
    )
    adapter_targets: str | None = option(
        None,
        "modules that get an adapter: all-linear, or names with commas; by the architecture if not given",
    )
    base_precision: str = option(
        "float32",
        "number format of the frozen weights under an adapter; 4bit needs a CUDA GPU",
        choices=("float32", "4bit"),
    )
    checkpoint_steps: int | None = option(None, "write a checkpoint every so many steps", least=1)
    checkpoint_minutes: float = option(
        5.0, "write a checkpoint every so many minutes, where checkpoint_steps is not given; 0 never", least=0.0
    )
    keep_checkpoints: int = option(2, "how many checkpoints are kept while the run goes on", least=1)
    on_non_finite: str = option(
        "stop",
        "what a loss or gradient that is not finite does: stop with the last good weights, or skip the step",
        choices=("stop", "skip"),
    )
    framework: str = option(
        "torch", "what computes the training: torch, or KerasHub on jax or tensorflow where it can do the same",
        choices=("torch", "jax", "tensorflow"),
    )  # fmt: skip
    seed: int = option(0, "the one seed of the run", least=0)
    threads: int | None = option(None, "processor threads; OMP_NUM_THREADS or the physical cores if not given", least=1)
    report_to: str = option("none", "who else is told of the run: tensorboard, mlflow, wandb, or some with commas")

    @property
    def reporters(self) -> tuple[str, ...]:
        """Return the names in ``report_to``."""
        return () if self.report_to == "none" else tuple(dict.fromkeys(self.report_to.replace(" ", "").split(",")))

    @property
    def ways(self) -> frozenset[str] | None:
        """Return the names in ``speed``; None where they are chosen when model and data are known."""
        if self.speed in ("auto", "measure"):
            return None
        return frozenset(() if self.speed == "plain" else self.speed.replace(" ", "").split(","))

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ways()
        for name in self.reporters:
            if name not in (known := plugins.names("reporters")):
                raise UsageError(
                    f"report_to={self.report_to!r}: there is no {name!r}",
                    hint=f"{did_you_mean(name, known)}none, or some of {', '.join(known)} with commas",
                )
        if self.within is not None:
            parse_duration("within", self.within)
        object.__setattr__(self, "trainable", re.sub(r"^top[:-]", "last-", self.trainable))
        if not re.fullmatch(r"all|head|last-[1-9]\d*", self.trainable):
            raise UsageError(f"trainable={self.trainable!r}", hint="all, head, or last-N, such as last-2")
        if self.activation_cache == "on" and self.trainable == "all":
            raise UsageError(
                "activation_cache=on, but no layer is frozen", hint="trainable=head or last-N, or leave it out"
            )
        if self.adapter != "none" and self.trainable != "all":
            raise UsageError(
                f"trainable={self.trainable} and adapter={self.adapter} both say what is trained",
                hint="leave one of them out; an adapter trains the head too",
            )
        if self.adapter == "none":
            names = ("adapter_rank", "adapter_alpha", "adapter_dropout", "adapter_targets")
            given = [name for name in names if getattr(self, name) is not None]
            if self.base_precision != "float32":
                given.append("base_precision")
            if given:
                raise UsageError(
                    f"{given[0]}={getattr(self, given[0])!r} does nothing without an adapter",
                    hint="adapter=lora or adapter=dora, or leave it out",
                )

    def _check_ways(self) -> None:
        ways, where = self.ways or frozenset(), f"speed={self.speed}"
        for name in sorted(ways - set(WAYS)):
            known = ("auto", "measure", "plain", *WAYS)
            raise UsageError(f"speed={self.speed!r}: there is no {name!r}",
                             hint=f"{did_you_mean(name, known)}auto, measure, plain, or some of {', '.join(WAYS)} with "
                             "commas")  # fmt: skip
        reason = ""
        if "packed" in ways and (other := sorted(ways & {"buckets", "compile"})):
            reason = f"packed rows need no {other[0]}"
        elif "bf16" in ways and self.precision == "float32":
            reason = "precision=float32 says something else"
        elif "cache" in ways and (self.activation_cache == "off" or self.trainable == "all"):
            off = self.activation_cache == "off"
            reason = "activation_cache=off" if off else "no layer is frozen: trainable=head or last-N"
        elif "cache" in ways and "packed" not in ways:
            reason = "cache needs packed"
        if reason:
            raise UsageError(f"{where}, but {reason}", hint="leave one of them out")


WAYS = ("packed", "buckets", "bf16", "compile", "cache")
"""What ``speed`` may name: rows end to end; batches of near-equal length; bfloat16 products; transformers' forward
compiled; outputs of frozen layers kept."""


@dataclass(frozen=True)
class TuneConfig(Config):
    """How to search for the options of a fine-tuning."""

    trials: int = option(20, "trainings that are tried", least=1)
    within: str | None = option(
        None, "longest time of the search, such as 90s, 10min or 2h; the trial that is not finished then is given up"
    )
    prune: str = option(
        "median",
        "median gives a trial up when an evaluation is worse than the median of the earlier trials; none never does",
        choices=("median", "none"),
    )
    cluster: str | None = option(
        None,
        "run the trials on a Ray cluster: ray://host:port, host:port, auto or local; here, one by one, if not given",
    )
    parallel: int | None = option(
        None, "trials at once on the cluster; one for each GPU, else for each machine, if not given", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within is not None:
            parse_duration("within", self.within)
        if self.parallel is not None and self.cluster is None:
            raise UsageError(
                f"parallel={self.parallel} without a cluster",
                hint="cluster=local (--cluster local) runs trials side by side on this machine",
            )


@dataclass(frozen=True)
class PredictConfig(Config):
    """How to predict."""

    batch_size: int = option(64, "texts computed at once; the labels do not depend on it", least=1)
    max_length: int | None = option(None, "longest text in tokens; the model's limit if not given", least=8)
    allow_truncated: float = option(
        1.0, "share of the texts that may be cut to max_length; where predictions are written, none if not given",
        least=0.0, most=1.0,
    )  # fmt: skip
    precision: str = option("auto", "number format of the work", choices=("auto", "float32", "bfloat16"))
    speed: str = option(
        "auto",
        "auto uses this project's faster equal paths where they are proven; plain uses transformers' own",
        choices=("auto", "plain"),
    )
    device: str = option("auto", "where to run: auto, cpu, cuda, mps, xpu")
    threads: int | None = option(None, "processor threads; OMP_NUM_THREADS or the physical cores if not given", least=1)


@dataclass(frozen=True)
class EvaluateConfig(PredictConfig):
    """How to evaluate."""

    allow_dropped: float = option(
        0.01, "share of the rows that an evaluation may leave out, such as empty ones", least=0.0, most=1.0
    )


@dataclass(frozen=True)
class ExportConfig(Config):
    """How to export."""

    quantize: str | None = option(None, "number format of the export, such as int8; float32 if not given")
    accept_drop: float | None = option(
        None, "how much of the score may be lost, in percent of it; by number format if not given", least=0.0
    )
    batch_size: int = option(32, "rows computed at once while it is checked", least=1)
    max_length: int | None = option(None, "longest text in tokens; the model's limit if not given", least=8)


@dataclass(frozen=True)
class GenerateConfig(Config):
    """How to write text."""

    max_new_tokens: int | None = option(
        None, "longest answer in tokens; up to 256, as far as the model's limit leaves room, if not given", least=1
    )
    temperature: float = option(
        0.0, "0 takes the likeliest token; above, tokens are drawn, more and more freely", least=0.0
    )
    top_p: float = option(
        1.0, "draw from the likeliest tokens that hold this share of probability", least=1e-6, most=1.0
    )
    top_k: int = option(0, "draw from so many likeliest tokens; 0 from all", least=0)
    min_p: float = option(
        0.0, "draw from tokens that are at least this share as likely as the likeliest", least=0.0, most=1.0
    )
    repetition_penalty: float = option(1.0, "above 1 makes tokens that were there already less likely", least=0.01)
    num_beams: int = option(1, "texts searched side by side for the likeliest one", least=1)
    seed: int = option(0, "what draws are made from; the same for the same prompt, whatever is beside it", least=0)
    batch_size: int = option(32, "prompts written to at once; greedy answers do not depend on it", least=1)
    precision: str = option("auto", "number format of the work", choices=("auto", "float32", "bfloat16"))
    speed: str = option(
        "auto",
        "auto uses this project's faster equal paths where they are proven; plain uses transformers' own",
        choices=("auto", "plain"),
    )
    device: str = option("auto", "where to run: auto, cpu, cuda, mps, xpu")
    threads: int | None = option(None, "processor threads; OMP_NUM_THREADS or the physical cores if not given", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name, off in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)) if getattr(self, name) != off]
        if given and self.temperature == 0.0:
            raise UsageError(
                f"{given[0]}={getattr(self, given[0])!r} does nothing at temperature 0",
                hint="temperature=0.7, or leave it out",
            )


@dataclass(frozen=True)
class ServeConfig(Config):
    """How to serve, and within which bounds."""

    host: str = option("127.0.0.1", "address to listen on; beyond this machine only with keys")
    port: int = option(8000, "port to listen on; 0 takes a free one", least=0, most=65535)
    memory: str | None = option(None, "memory for models, such as 8GB; most of what is free if not given")
    max_requests: int = option(1024, "requests under way at once; more are told when to come again", least=1)
    max_waiting: int = option(256, "requests that may wait for a model; more are told when to come again", least=1)
    max_waiting_tokens: int = option(1 << 18, "tokens, read and to be written, that may wait for a model", least=1)
    max_streams: int = option(32, "texts that a model writes side by side", least=1)
    max_cache_tokens: int = option(1 << 16, "tokens of texts written side by side, at their longest", least=1)
    max_prefix_tokens: int = option(1 << 15, "tokens of earlier prompts not read again; 0 for none", least=0)
    max_batch_tokens: int = option(4096, "tokens that are computed before new requests are looked at", least=1)
    max_new_tokens: int = option(4096, "longest answer in tokens that a request may ask for", least=1)
    max_inputs: int = option(1024, "texts in one request", least=1)
    max_body: int = option(4 << 20, "bytes of a request", least=1024)
    read_timeout: float = option(30.0, "seconds for a request to arrive, or an answer to be taken", least=0.1)
    batch_size: int = option(32, "texts computed at once", least=1)
    timeout: float = option(300.0, "seconds after which a request is given up", least=0.1)
    drain: float = option(45.0, "seconds that requests have to end when the server is told to stop", least=0.0)
    precision: str = option("auto", "number format of the work", choices=("auto", "float32", "bfloat16"))
    speed: str = option("auto", "auto uses faster equal paths where they are proven", choices=("auto", "plain"))
    device: str = option("auto", "where to run: auto, cpu, cuda, mps, xpu")
    threads: int | None = option(None, "processor threads; OMP_NUM_THREADS or the physical cores if not given", least=1)
    engine: str | None = option(None, "what computes: torch, or for an export its own, if not given; openvino, "
                                "onnxruntime, ...; auto takes what llmasos doctor shows; NAME=ENGINE is for one model",
                                several=True)  # fmt: skip
    quantize: str | None = option(None, "number format of what that engine computes, such as int8; one that keeps the "
                                  "answers if not given; NAME=FORMAT is for one model", several=True)  # fmt: skip
    behind: str | None = option(None, "the cloud in front, which checks who asks: sagemaker or azureml; its routes "
                                "alone are answered, without a key")  # fmt: skip
    log_content: str = option("off", "on keeps prompts and answers, less personal data", choices=("off", "on"))
    ssl_certfile: str | None = option(None, "certificate, to serve over HTTPS")
    ssl_keyfile: str | None = option(None, "key of the certificate; LLMASOS_KEY_PASSWORD opens an encrypted one")


@dataclass(frozen=True)
class DeployConfig(Config):
    """What is deployed, and how much of it."""

    name: str | None = option(None, "what it is called there, and its model by clients; after the model if not given")
    image: str | None = option(None, "image of the server; llmasos:VERSION, or NAME:VERSION with the weights inside, "
                               "if not given")  # fmt: skip
    replicas: int = option(1, "copies of the server", least=1)
    max_replicas: int | None = option(None, "copies under load; as many as replicas if not given", least=1)
    cpus: float = option(2.0, "processor cores of a copy", least=0.1)
    memory: str | None = option(None, "memory of a copy, such as 4GB; 1.5 GB and three times the model's files if not "
                                "given")  # fmt: skip
    gpu: int = option(0, "CUDA devices of a copy", least=0)
    port: int = option(8000, "port that the server listens on", least=1024, most=65535)
    region: str | None = option(None, "region of the cloud, such as eu-central-1")
    instance: str | None = option(None, "the cloud's type of machine, such as ml.m6i.xlarge")
    engine: str | None = option(None, "what computes, as for llmasos serve")
    quantize: str | None = option(None, "number format of what that engine computes, as for llmasos serve")
    precision: str = option("auto", "number format of the work", choices=("auto", "float32", "bfloat16"))
    keys_secret: str | None = option(
        None, "the place's own secret that holds the server's keys; NAME-keys if not given"
    )
    weights: str = option("outside", "the model beside the image, or inside it", choices=("outside", "inside"))
    canary: str | None = option(None, "share of the requests that a new version is tried with beside the old one, such "
                                "as 10%; with --apply")  # fmt: skip
    watch: str = option("10min", "how long a new version is watched before it takes all requests")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory is not None:
            parse_size("memory", self.memory)
        if self.canary is not None:
            parse_share("canary", self.canary)
        parse_duration("watch", self.watch)
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise UsageError(f"max_replicas={self.max_replicas}, below replicas={self.replicas}",
                             hint=f"at least {self.replicas}, or leave it out")  # fmt: skip


@dataclass(frozen=True)
class WriteConfig(GenerateConfig):
    """How a tuned model writes its answers to rows."""

    max_length: int | None = option(None, "longest source in tokens; what the model takes if not given", least=8)
    allow_truncated: float = option(
        0.0, "share of the sources that may be cut to what the model takes", least=0.0, most=1.0
    )


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe: a flat mapping of option names to values.

    Raises:
        UsageError: no such file, not YAML, or not a mapping.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no such recipe: {path}", hint="--config takes the path of a YAML file") from error
    except OSError as error:
        raise UsageError(
            f"the recipe {path} cannot be read: {error.strerror}", hint="--config takes the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not YAML: {' '.join(str(error).split())}", hint="write one `key: value` a line"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}", hint="write one `key: value` a line")
    return content


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Turn ``["epochs=3", "seed=1"]`` (``--set``) into a mapping."""
    out: dict[str, Any] = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"--set {setting!r} is not key=value", hint="for example --set epochs=3")
        out[name.strip().replace("-", "_")] = value.strip()
    return out


def parse_size(name: str, text: str) -> int:
    """Read an amount of memory: "8GB", "512MB", "2GiB".

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"([0-9.]+)\s*([kmgt]?)(i?)b?", text.strip().lower())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if found is None or number <= 0:
        raise UsageError(f"{name}={text!r} is no amount of memory", hint="such as 8GB or 512MB")
    return int(number * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


def parse_share(name: str, text: str) -> float:
    """Return the share that ``"10%"`` or ``"0.1"`` is, the value of the option ``name``.

    Raises:
        UsageError: it is none between nothing and all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < share < 1:
        raise UsageError(f"{name}={text!r} is no part of the requests", hint=f"for example {name}=10%")
    return share


def parse_duration(name: str, text: str) -> float:
    """Return the seconds of ``"90s"``, ``"10min"``, ``"2h"`` or ``"1h30min"``, the value of the option ``name``.

    Raises:
        UsageError: it is no such text, or no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(s|min|h)", text)
    seconds = sum(float(number) * {"s": 1, "min": 60, "h": 3600}[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or not seconds:
        raise UsageError(
            f"{name}={text!r} is not a length of time", hint=f"for example {name}=90s, 10min, 2h or 1h30min"
        )
    return seconds


def _kinds(item: Field[Any], owner: type) -> tuple[type, bool]:
    """Return a field's plain type and whether None is allowed."""
    hint = _hints(owner)[item.name]
    if isinstance(hint, types.UnionType):
        (kind,) = [part for part in typing.get_args(hint) if part is not type(None)]
        return kind, True
    return hint, False


@cache
def _hints(owner: type) -> dict[str, Any]:
    """Return the types of an owner's fields, which takes two milliseconds to find out."""
    return typing.get_type_hints(owner)


def _typed(item: Field[Any], value: Any, owner: type) -> Any:
    """Convert words from YAML or the shell to the field's type; leave typed values alone."""
    kind, optional = _kinds(item, owner)
    if isinstance(value, list) and item.metadata["several"]:
        value = ",".join(map(str, value))
    if value is None or (optional and isinstance(value, str) and value.lower() in ("none", "null", "")):
        return None
    if isinstance(value, str) or (_is_number(value) and kind is not str):
        try:
            if kind is int and not isinstance(value, str) and value != int(value):
                raise ValueError(value)
            return kind(value)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{item.name}={value!r} is not {_worded(kind)}", hint=item.metadata["help"]) from error
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _worded(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a word"}.get(kind, kind.__name__)


def _check(item: Field[Any], value: Any, owner: type) -> None:
    kind, optional = _kinds(item, owner)
    if value is None and optional:
        return
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits or (kind is float and not math.isfinite(value)):
        raise UsageError(f"{item.name}={value!r} is not {_worded(kind)}", hint=item.metadata["help"])
    least, most, choices = (item.metadata[k] for k in ("least", "most", "choices"))
    if choices and value not in choices:
        raise UsageError(
            f"{item.name}={value!r}", hint=f"{did_you_mean(str(value), choices)}one of {', '.join(choices)}"
        )
    if (least is not None and value < least) or (most is not None and value > most):
        span = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"
        raise UsageError(f"{item.name}={value!r} is out of range", hint=f"{span}: {item.metadata['help']}")
