"""Open a model: its folder checked, its tokenizer, and its weights with the head that a task needs.

Only safetensors are read and no code of a model is ever run; ``core/bundle.py`` refuses the rest
before a library opens anything. What transformers would only warn about is decided here: a weight
that is missing below the head is an error, a head that must be new is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .architectures._adapters import Adapter, attach, load
from .core import bundle, plugins
from .core.errors import BundleError, NotFittedError, UsageError
from .data import tokenizer as light
from .data.tokenizer import longest
from .tasks.base import SCRIPTS, Task


class Loaded(NamedTuple):
    """A transformers model in float32, and what the user should know about how it was opened."""

    model: Any
    notes: list[str]
    fresh: tuple[str, ...] = ()
    """Names of the modules that were drawn anew."""


def load_tokenizer(folder: Path) -> Any:
    """Open the tokenizer of a model folder.

    Raises:
        BundleError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    with quiet(), _explained(folder, "tokenizer"):
        if not any(file for pattern in _TOKENIZERS for file in folder.glob(pattern)):
            raise FileNotFoundError("there is no tokenizer file")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_fast=True)
    size = getattr(load_config(folder), "vocab_size", None)
    if size is not None and len(tokenizer) > size:
        raise BundleError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model embeddings for {size}",
            hint="take the tokenizer that belongs to the model",
        )
    return tokenizer


def reads_alike(folder: Path, tokenizer: Any, task: Task) -> bool:
    """Say whether the light tokenizer (``data/tokenizer.py``) reads a saved folder as transformers' own does.

    Args:
        folder: with the tokenizer's files and ``config.json``.
        tokenizer: transformers' own.
        task: on the texts of its golden rows both are compared, besides texts of many scripts.
    """
    if not getattr(tokenizer, "is_fast", False) or not (folder / light.FILE).is_file():
        return False
    rows = [value for row in task.golden() for value in row.values() if isinstance(value, str)]
    ours, asked = light.opened(folder), [SCRIPTS, "", "Hello, world!", *rows]
    ours.model_input_names = tuple(tokenizer.model_input_names)
    compared: list[tuple[Any, Any]] = [
        (ours(asked), dict(tokenizer(asked, truncation=False, verbose=False))),
        (ours(asked, asked[::-1]), dict(tokenizer(asked, asked[::-1], truncation=False, verbose=False))),
        (ours.all_special_ids, tokenizer.all_special_ids),
        (ours.special_tokens_map, tokenizer.special_tokens_map),
        (light.longest_input(folder, ours), longest_input(folder, tokenizer)),
    ]
    return all(here == there for here, there in compared)


_TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "spiece*", "sentencepiece*")


def longest_input(folder: Path, tokenizer: Any) -> int:
    """Return how many tokens the model can take, special tokens included."""
    return longest_of(load_config(folder), tokenizer)


def longest_of(config: Any, tokenizer: Any) -> int:
    """Return how many tokens a model of this configuration can take, special tokens included."""
    positions = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
    padding = getattr(config, "pad_token_id", None)
    return longest(config.model_type, positions, padding, tokenizer.model_max_length)


def load_config(folder: Path) -> Any:
    """Open the configuration of a model folder."""
    from transformers import AutoConfig

    with quiet(), _explained(folder, "config.json"):
        if bundle.is_adapter(folder):
            Adapter.read(folder)
            content: dict[str, Any] = (bundle.read_manifest(folder) or {})["adapter"]["config"]
            return AutoConfig.for_model(**content)
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def writes(folder: Path) -> bool:
    """Say whether a model writes text, by the head that it was saved with."""
    config = load_config(folder)
    heads = ("ForCausalLM", "LMHeadModel")
    return bool(config.is_encoder_decoder) or any(name.endswith(heads) for name in config.architectures or ())


def purpose_of(folder: Path, tokenizer: Any) -> Task:
    """Return what a model that was never tuned can do: write, or make vectors of texts.

    The tokenizer of one that writes gets a plain chat template where it has none.

    Raises:
        NotFittedError: it has an encoder and a decoder, of which only training says what for.
        BundleError: its vectors are not the mean over the tokens.
    """
    if load_config(folder).is_encoder_decoder:
        raise NotFittedError(f"{folder} has no task yet", hint="finetune it first")
    if writes(folder):
        name = "text-generation"
    else:
        check_pooling(folder)
        name = "sentence-similarity"
    task: Task = plugins.load("tasks", name)()
    return task.fitted((), tokenizer)[0]


def load_model(
    folder: Path, task: Task, *, seed: int = 0, known: Task | None = None, complete: bool = False,
    base: str | Path | None = None, **options: Any,
) -> Loaded:  # fmt: skip
    """Open the weights with the task's head; a head that the folder lacks is drawn from ``seed``.

    Args:
        folder: a checked model folder.
        task: the task that the model is for, its labels settled.
        seed: what a new head is drawn from.
        known: the task that the folder was saved with; its head is kept only if the labels agree.
        complete: the folder must hold the head: a model that answers is meant, not one to train.
        base: for an adapter, where its base model is, if no longer where it was.
        **options: for transformers' ``from_pretrained``.

    Raises:
        BundleError: weights are missing or of another shape below the head, or cannot be read.
    """
    bundle.check_folder(folder)
    if bundle.is_adapter(folder):
        model, fresh = _adapted(folder, task, seed, known, base, options)
    else:
        model, fresh = _opened(folder, task, seed, known, options)
    if complete and fresh:
        raise BundleError(
            f"{folder} lacks the weights of its head: {', '.join(fresh)}", hint="fetch it again, or finetune it"
        )
    notes = [f"new weights for {', '.join(fresh)}: they learn from your data"] if fresh else []
    return Loaded(model, notes, tuple(fresh))


def load_writer(folder: Path) -> Any:
    """Open a model that writes text, with the head it was made with, in float32.

    Raises:
        BundleError: it lacks weights, or has no language head.
    """
    import torch
    import transformers

    bundle.check_folder(folder)
    encodes = load_config(folder).is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if encodes else transformers.AutoModelForCausalLM
    with quiet(), _explained(folder, "language model"):
        model, info = auto.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
        fresh = _new_keys(model, info, folder)
    if fresh:
        raise BundleError(
            f"{folder} lacks the head that writes text: {', '.join(fresh)}",
            hint="take a model made for text generation or translation, or finetune this one",
        )
    return model


def _opened(folder: Path, task: Task, seed: int, known: Task | None, options: dict[str, Any]) -> tuple[Any, list[str]]:
    import torch
    import transformers

    auto = getattr(transformers, task.auto_class)
    with quiet(), _explained(folder, "weights"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **task.head_config(),
            **options,
        )
        fresh = _new_keys(model, info, folder)
        if known is not None and not fresh and known.head_config() != task.head_config():
            fresh = _draw_head(model)
    return model, fresh


def _adapted(
    folder: Path, task: Task, seed: int, known: Task | None, base: str | Path | None, options: dict[str, Any]
) -> tuple[Any, list[str]]:
    """Open an adapter's base, after making sure that it is the one, and put the adapter on it."""
    import torch

    adapter = Adapter.read(folder)
    model, fresh = _opened(_base_of(folder, adapter, base), task, seed, None, options)
    grow(model, getattr(load_config(folder), "vocab_size", 0), seed)
    same = known is None or known.head_config() == task.head_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attach(model, adapter)
        load(model, folder, heads=same)
        if not same:
            return model, _draw_head(model)
    heads = tuple(f"{name}." for name in adapter.heads)
    return model, [name for name in fresh if not f"{name}.".startswith(heads)]


def _base_of(folder: Path, adapter: Adapter, base: str | Path | None) -> Path:
    """Find the base model of an adapter, and compare its weights with those that the adapter was trained on."""
    from .sources.base import locate

    ref = adapter.base["ref"] if base is None else base
    try:
        place = locate(ref, revision=adapter.base.get("revision") if base is None else None).path
    except UsageError as error:
        raise BundleError(
            f"the adapter in {folder} needs its base model {ref}: {error.message}",
            hint="base=... of from_pretrained (--base of `llmasos merge`) says where it is now",
        ) from error
    if bundle.is_adapter(place) or weight_hashes(place) != adapter.base["files"]:
        raise BundleError(
            f"the adapter in {folder} was trained on other weights than those of {ref} (their sha256 differs)",
            hint=f"base=... of from_pretrained takes a folder with the unchanged {adapter.base['ref']}",
        )
    return place


def weight_hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each weight file of a model."""
    return {name: bundle.digest(folder / name) for name in bundle.weight_files(folder)}


def grow(model: Any, size: int, seed: int) -> int:
    """Give the vocabulary at least ``size`` rows, new ones drawn from ``seed``; return how many are new."""
    import torch

    missing: int = size - model.get_input_embeddings().num_embeddings
    if missing > 0:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(size)
    return max(0, missing)


def _new_keys(model: Any, info: dict[str, Any], folder: Path) -> list[str]:
    """Return the modules that were not in the folder; refuse those that must have been."""
    mismatched = {str(key[0] if isinstance(key, tuple | list) else key) for key in info["mismatched_keys"]}
    missing = set(info["missing_keys"]) | mismatched
    headless = model.base_model is model  # a pooler, if it has one, is not what a task reads
    below = "" if headless else model.base_model_prefix + "."
    broken = sorted(key for key in missing if key.startswith(below) and not key.startswith(below + "pooler."))
    extra = sorted(key for key in info["unexpected_keys"] if "encoder.layer." in key)
    if extra:
        raise BundleError(
            f"{folder} holds weights that its config.json has no place for: {', '.join(extra[:3])}, ...",
            hint="config.json belongs to another size or architecture: fetch it again",
        )
    if broken:
        raise BundleError(
            f"{folder} lacks weights of the model itself: {', '.join(broken[:5])}"
            + (f" and {len(broken) - 5} more" if len(broken) > 5 else ""),
            hint="the file is incomplete or belongs to another architecture: fetch it again",
        )
    return [] if headless else sorted({key.rsplit(".", 1)[0] for key in missing})


def _draw_head(model: Any) -> list[str]:
    """Draw the linear layers above the base model anew. Returns their names."""
    import torch

    spread = getattr(model.config, "initializer_range", 0.02)
    drawn: list[str] = []
    if model.base_model is model:  # all of it is below a head
        return drawn
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.startswith(model.base_model_prefix + "."):
            torch.nn.init.normal_(module.weight, std=spread)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
            drawn.append(name)
    return drawn


def check_pooling(folder: Path) -> None:
    """Refuse a folder of sentence-transformers whose vectors are not the mean over the tokens.

    Raises:
        BundleError: it takes the first token, the maximum or anything else.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    modes = {name.removeprefix("pooling_mode_").removesuffix("_tokens") for name, value in content.items()
             if name.startswith("pooling_mode_") and value is True}  # fmt: skip
    named = content.get("pooling_mode") or []
    modes |= {named} if isinstance(named, str) else set(named)
    if modes - {"mean"}:
        raise BundleError(
            f"{path} says that a text's vector is made by {', '.join(sorted(modes))}, and only mean is computed here",
            hint="take a model with mean pooling, or use this one with sentence-transformers",
        )


def set_dropout(model: Any, probability: float) -> None:
    """Set every dropout of a model, in its modules and in its configuration."""
    import torch

    for name in _DROPOUTS:
        if getattr(model.config, name, None) is not None:
            setattr(model.config, name, probability)
    for name, module in model.named_modules():
        if ".lora_dropout." in name:  # has its own option
            continue
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = probability


_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "hidden_dropout", "seq_classif_dropout", "embedding_dropout", "mlp_dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop",
)  # fmt: skip


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Let nothing drop out for a while, in adapters neither."""
    places = [(model.config, name) for name in _DROPOUTS]
    places += [(module, name) for module in model.modules() for name in ("p", "attention_dropout")]
    kept = [(owner, name, value) for owner, name in places if isinstance(value := getattr(owner, name, None), float)]
    for owner, name, _ in kept:
        setattr(owner, name, 0.0)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


_TALKATIVE = ("torchao", "torch.utils._pytree")
"""What transformers imports where ExecuTorch is installed, and what that calls on."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and reports off the terminal: what matters is said by us."""
    from logging import getLogger

    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in _TALKATIVE:
        getLogger(name).setLevel("ERROR")
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _explained(folder: Path, what: str) -> Iterator[None]:
    """Put our sentence before what a library below says about a folder that it cannot open."""
    try:
        yield
    except (BundleError, UsageError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(
            f"the {what} in {folder} cannot be opened: {reason}",
            hint="is it a complete transformers folder of a supported architecture?",
        ) from error
