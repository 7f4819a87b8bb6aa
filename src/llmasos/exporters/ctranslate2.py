"""CTranslate2: translators and summarizers with an encoder and a decoder, in ``ctranslate2/`` beside the tokenizer.

CTranslate2's own converter reads folders; here its layers are filled from the model in memory, and what it takes from
folders is said by this file: the words of the vocabulary (by the ids of the model, all of them), where answers begin
and end, and what the versions of transformers call differently. Marian begins from the embedding of its start token
like every other model, so that models which were not trained by Marian keep theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..decoders._plain import start_of
from ..tasks.base import Task
from .base import Exporter, Source, Written, still

FOLDER = "ctranslate2"

BARTS = {
    "marian": (False, False),
    "bart": (False, True),
    "mbart": (True, True),
    "m2m_100": (True, False),
    "pegasus": (True, False),
}
"""Model type -> whether layers normalize what they read, and whether embeddings are normalized."""

T5S: dict[str, Callable[[Any], bool]] = {
    "t5": lambda config: bool(config.scale_decoder_outputs),
    "mt5": lambda _: False,
    "umt5": lambda config: bool(config.tie_word_embeddings),
}
"""Model type -> whether its decoder's outputs are scaled before the vocabulary."""


class CTranslate2Format(Exporter):
    """Folders for CTranslate2."""

    target = "ctranslate2"
    engine = "ctranslate2"
    requires = ("ctranslate2",)
    extra = "ctranslate2"
    precisions = {"encoder-decoder": ("float32", "int8", "float16", "bfloat16")}  # noqa: RUF012

    def check(self, task: Task, config: Any, precision: str | None) -> str:
        """Return the precision to write; see ``Exporter.check``."""
        found = super().check(task, config, precision)
        if config.model_type not in (*BARTS, *T5S):
            raise UsageError(
                f"ctranslate2 holds no model of type {config.model_type}",
                hint=f"it holds {', '.join(sorted((*BARTS, *T5S)))}",
            )
        if not getattr(config, "share_encoder_decoder_embeddings", True):
            raise UsageError(
                "this model has one vocabulary for sources and another for targets, which are not exported",
                hint="--target onnx, or a model with a shared vocabulary",
            )
        return found

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write weights, vocabulary and settings."""
        with still():
            spec = _spec(copy.deepcopy(source.model))  # what quantizes does it in place
            words = _words(source.tokenizer, spec.get_target_vocabulary_size())
            spec.register_source_vocabulary(words)
            spec.register_target_vocabulary(words)
            _settle(spec.config, source, words)
            spec.validate()
            spec.optimize(quantization="int8_float32" if precision == "int8" else precision)
            place = folder / FOLDER
            place.mkdir()
            spec.save(str(place))
        files = ("model.bin", "config.json", "shared_vocabulary.json")
        return Written([f"{FOLDER}/{name}" for name in files], more={"writes": True, "searches": True})


def _spec(model: Any) -> Any:
    """Return CTranslate2's layers, filled with the model's weights."""
    from ctranslate2.converters import transformers as loaders

    kind = model.config.model_type
    if kind in T5S:
        model.config.tie_word_embeddings = T5S[kind](model.config)  # the loader scales by this name
        return (loaders.UMT5Loader() if kind == "umt5" else loaders.T5Loader()).get_model_spec(model)
    model.config.normalize_before, model.config.normalize_embedding = BARTS[kind]
    if kind != "m2m_100":
        return loaders.BartLoader().get_model_spec(model)
    for stack in (model.model.encoder, model.model.decoder):
        places = stack.embed_positions  # it counts from behind the padding id on
        first = places.padding_idx + 1
        table = places.get_embedding(first + places.num_positions, places.embedding_dim, places.padding_idx)
        places.weights, places.offset = table[first:].clone(), 0
    loader = loaders.M2M100Loader()
    return loaders.BartLoader.get_model_spec(loader, model)


def _words(tokenizer: Any, size: int) -> list[str]:
    """Return a word for each id of the model: the tokenizer's, and unlike ones where it has none or the same again."""
    words: list[str] = []
    seen: set[str] = set()
    for place, word in enumerate(tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))):
        words.append(word if word is not None and word not in seen else f"<unused-{place}>")
        seen.add(words[-1])
    return words + [f"<unused-{place}>" for place in range(len(words), size)]


def _settle(config: Any, source: Source, words: list[str]) -> None:
    """Say where answers begin and end: for what is not told otherwise at each call."""
    settings, tokenizer = source.model.generation_config, source.tokenizer
    start = source.task.generation(tokenizer).get("start_token", start_of(source.model))
    ends = settings.eos_token_id if settings.eos_token_id is not None else tokenizer.eos_token_id
    config.decoder_start_token = words[start]
    # CTranslate2 takes a source of the end token and one more for empty, unless that is what texts begin with
    config.eos_token = config.bos_token = words[ends[0] if isinstance(ends, list | tuple) else ends]
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id
    config.unk_token = words[start if unknown is None else unknown]  # it must be one of them; no text becomes it here
    config.layer_norm_epsilon = getattr(source.model.config, "layer_norm_epsilon", 1e-5)


PLUGIN = CTranslate2Format()
