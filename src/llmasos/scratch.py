"""From nothing: a tokenizer learned from texts, and a model of random weights that goes with it.

What comes out are standard folders, so that everything else works on them unchanged.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .core import atomic, bundle
from .core.environment import home
from .core.errors import BundleError, DataError, UsageError, did_you_mean
from .loading import quiet

END, PAD = "<|endoftext|>", "<|pad|>"
"""Begins and ends every document, as in GPT-2; fills batches."""

CHATML = "chatml"
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_WORDS = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""What is never joined to one token: the rule of GPT-4's and Qwen's tokenizers."""

_LINES = 1000  # of a running text, learned from together

_LLAMA = {"model_type": "llama", "max_position_embeddings": 2048, "tie_word_embeddings": True}
_BERT = {"model_type": "bert", "max_position_embeddings": 512}
_MARIAN = {"model_type": "marian", "max_position_embeddings": 512, "activation_function": "relu", "dropout": 0.2,
           "scale_embedding": True}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "llama-4m": {**_LLAMA, "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3,
                 "num_key_value_heads": 3, "intermediate_size": 512},
    "llama-10m": {**_LLAMA, "hidden_size": 256, "num_hidden_layers": 10, "num_attention_heads": 4,
                  "num_key_value_heads": 4, "intermediate_size": 704},
    "llama-30m": {**_LLAMA, "hidden_size": 384, "num_hidden_layers": 14, "num_attention_heads": 6,
                  "num_key_value_heads": 6, "intermediate_size": 1024},
    "llama-100m": {**_LLAMA, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                   "num_key_value_heads": 12, "intermediate_size": 2048},
    "bert-10m": {**_BERT, "hidden_size": 256, "num_hidden_layers": 10, "num_attention_heads": 4,
                 "intermediate_size": 1024},
    "marian-7m": {**_MARIAN, "d_model": 256, "encoder_layers": 3, "decoder_layers": 3,
                  "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 1024,
                  "decoder_ffn_dim": 1024},
}  # fmt: skip
"""Model shapes by name; the sizes in the names are reached with about 8,000 tokens (100m: 16,000)."""


class Trained(NamedTuple):
    """A tokenizer as it was written: its folder, its size, and how many bytes of the texts a token stands for."""

    path: Path
    size: int
    bytes_per_token: float


def train_tokenizer(
    data: Any,
    vocab_size: int,
    *,
    output: str | Path,
    columns: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    special_tokens: Sequence[str] = (),
    masked: bool = False,
    overwrite: bool = False,
) -> Trained:
    """Learn a byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019): it can write any text.

    Args:
        data: a path, a list of paths, or anything else that holds rows with a text.
        vocab_size: tokens, the 256 bytes and the special ones among them.
        output: folder for the tokenizer.
        columns: ``{"text": column}``, where the column is not found by itself.
        chat_template: "chatml", or the text of a Jinja template.
        special_tokens: more tokens that are never cut.
        masked: also a ``[MASK]``, and ``[CLS]`` and ``[SEP]`` around texts, for encoders.
        overwrite: replace a tokenizer in that folder.

    Raises:
        UsageError: no room for the bytes, or a damaged option.
        DataError: the texts cannot be read, or do not hold so many tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    special = _special_tokens(chat_template, special_tokens, masked)
    if vocab_size < 256 + len(special):
        raise UsageError(
            f"vocab_size={vocab_size}: the 256 bytes and {len(special)} special tokens need more",
            hint=f"at least {256 + len(special)}; 8192 suits small models",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = [0, 0]
    tokenizer.train_from_iterator(_counted(data, columns, seen), trainer)
    size = tokenizer.get_vocab_size()
    if not seen[0] or size < vocab_size:
        raise DataError(
            f"the texts ({seen[1]} bytes) hold {size} tokens, not {vocab_size}",
            hint=f"vocab_size={size} or less, or more text",
        )
    tokenizer.post_processor = _around(tokenizer, masked)
    wrapped = _wrapped(tokenizer, chat_template, masked)
    path = atomic.write_folder(output, lambda folder: _save(wrapped, folder), overwrite=overwrite, replaces=_is_ours)
    sample = "".join(text for text, _ in zip(_texts(data, columns), range(1000), strict=False))
    return Trained(path, size, len(sample.encode()) / max(1, len(tokenizer.encode(sample).ids)))


def _special_tokens(chat_template: str | None, more: Sequence[str], masked: bool) -> list[str]:
    own = [END, PAD, *(("[CLS]", "[SEP]", "[MASK]") if masked else ())]
    chat = _CHATML_TOKENS if chat_template == CHATML else ()
    found = list(dict.fromkeys([*own, *chat, *more]))
    if "" in found:
        raise UsageError("a special token is empty", hint="for example <|user|>")
    return found


def _texts(data: Any, columns: Mapping[str, str] | None) -> Iterator[str]:
    from .data.dataset import stream
    from .tasks._vocabulary import text_of
    from .tasks.language_modeling import LanguageModelingTask

    several = isinstance(data, list | tuple) and all(isinstance(item, Path) or _is_path(item) for item in data)
    for source in data if several else [data]:
        fields = LanguageModelingTask().fields
        lines: list[str] = []
        for row in stream(source, fields, columns=columns):
            if "line" not in row:
                yield text_of(row)
                continue
            lines.append(f"{text_of(row)}\n")
            if len(lines) == _LINES:
                yield "".join(lines)
                lines.clear()
        if lines:
            yield "".join(lines)


def _is_path(item: Any) -> bool:
    return isinstance(item, str) and "\n" not in item and len(item) < 1024 and Path(item).is_file()


def _counted(data: Any, columns: Mapping[str, str] | None, seen: list[int]) -> Iterator[str]:
    for text in _texts(data, columns):
        seen[0], seen[1] = seen[0] + 1, seen[1] + len(text.encode())
        yield text


def _around(tokenizer: Any, masked: bool) -> Any:
    from tokenizers import processors

    before, after = ("[CLS]", "[SEP]") if masked else (END, "")
    ids = [(name, tokenizer.token_to_id(name)) for name in (before, after) if name]
    pair = f"{before} $A {after} $B:1 {after}:1" if masked else f"{before} $A {before} $B:1"
    template = processors.TemplateProcessing(single=f"{before} $A {after}".strip(), pair=pair, special_tokens=ids)
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), template])


def _wrapped(tokenizer: Any, chat_template: str | None, masked: bool) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": END, "eos_token": END, "pad_token": PAD}
    if masked:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
    if chat_template is not None:
        wrapped.chat_template = _CHATML if chat_template == CHATML else chat_template
        if chat_template == CHATML:
            wrapped.eos_token = _CHATML_TOKENS[1]
    return wrapped


def _save(tokenizer: Any, folder: Path) -> None:
    with quiet():
        tokenizer.save_pretrained(folder)


def _is_ours(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() and not bundle.is_bundle(folder)


# -- models -------------------------------------------------------------------------------------------


def create(
    config: str | Path | Mapping[str, Any],
    tokenizer: str | Path,
    *,
    seed: int = 0,
    output: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model of random weights as a standard folder.

    Args:
        config: the name of a preset, a configuration of transformers as a mapping (``model_type`` and sizes), or
            the path of such a ``config.json`` or of a folder that holds one.
        tokenizer: the folder of a tokenizer, or a model whose tokenizer is taken.
        seed: what the weights are drawn from.
        output: folder for the model; in ``LLMASOS_HOME``, by its content, if not given.
        overwrite: replace a model in that folder.

    Raises:
        UsageError: no such preset or architecture, or an option that it does not have.
    """
    import torch

    words = _tokenizer(tokenizer)
    built = _config(config, words)
    model_class = _model_class(built)

    def fill(folder: Path) -> None:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model_class(built).float().save_pretrained(folder)
            words.save_pretrained(folder)
        for file in bundle.weight_files(folder):  # safetensors writes for its owner alone
            shutil.copymode(folder / "config.json", folder / file)

    if output is not None:
        return bundle.write_folder(output, fill, overwrite=overwrite)
    content = [built.to_dict(), words.backend_tokenizer.to_str(), seed]
    name = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = home() / "scratch" / f"{built.model_type}-{name}"
    return path if bundle.is_bundle(path) else bundle.write_folder(path, fill)


def _tokenizer(ref: str | Path) -> Any:
    from transformers import AutoTokenizer

    from .sources.base import locate

    folder = Path(ref).expanduser()
    if not folder.joinpath("tokenizer.json").is_file():
        folder = locate(ref, weights=False).path
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(
            f"the tokenizer in {folder} cannot be opened: {reason}", hint="make one with llmasos tokenizer train"
        ) from error


def _config(config: str | Path | Mapping[str, Any], tokenizer: Any) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    values = dict(config) if isinstance(config, Mapping) else _named(config)
    kind = values.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        hint = did_you_mean(str(kind), list(CONFIG_MAPPING.keys()))
        raise UsageError(f"model_type={kind!r} is no architecture of transformers", hint=f"{hint}for example llama")
    known = {*AutoConfig.for_model(kind).to_dict(), "architectures"}
    for name in values:
        if name not in known:
            raise UsageError(f"{kind} has no option {name!r}", hint=did_you_mean(name, known) or "see its config")
    size = len(tokenizer)
    room = values.setdefault("vocab_size", -(-size // 64) * 64)  # a round number suits matrix products
    if room < size:
        raise UsageError(f"vocab_size={room}, but the tokenizer has {size} tokens", hint="leave vocab_size out")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if AutoConfig.for_model(kind).is_encoder_decoder:  # as Marian and T5 begin to write
        ids |= {"decoder_start_token_id": tokenizer.pad_token_id, "forced_eos_token_id": tokenizer.eos_token_id}
    return AutoConfig.for_model(kind, **{**values, **{k: v for k, v in ids.items() if v is not None}})


def _named(config: str | Path) -> dict[str, Any]:
    if str(config) in PRESETS:
        return dict(PRESETS[str(config)])
    path = Path(config).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        hint = f"{did_you_mean(str(config), PRESETS)}presets: {', '.join(PRESETS)}; or the path of a config.json"
        raise UsageError(f"there is no configuration {str(config)!r}", hint=hint)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint="a config.json of transformers") from error
    own = ("transformers_version", "torch_dtype", "dtype", "_name_or_path", "vocab_size")
    return {name: value for name, value in content.items() if name not in own}


def _model_class(config: Any) -> Any:
    """Return the class that the configuration names, else the one that writes, else the one that fills in."""
    import transformers

    for name in config.architectures or ():
        if (found := getattr(transformers, name, None)) is not None:
            return found
    if getattr(config, "is_encoder_decoder", False):
        return transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    kinds = (transformers.MODEL_FOR_MASKED_LM_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING)
    for mapping in kinds if not getattr(config, "is_decoder", False) else kinds[::-1]:
        if type(config) in mapping:
            return mapping[type(config)]
    raise UsageError(
        f"{config.model_type} has no head over a vocabulary", hint="an encoder such as bert, or a decoder such as llama"
    )
