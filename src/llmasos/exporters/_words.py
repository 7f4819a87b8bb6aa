"""The tokenizer of a GGUF file: which of llama.cpp's tokenizers it is, its words, and what begins and ends a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..core.errors import UsageError
from ..tasks.base import SCRIPTS
from .base import Source

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
PRE_TOKENIZERS = {
    (None, False): "gpt-2",
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",  # the same rule, where words are joined although they are tokens already
    (_QWEN2, False): "qwen2",
}
"""What cuts a text into words (None: GPT-2's rule), and whether a word that is a token is taken whole -> llama.cpp's
name."""

SPECIAL = {"bos": ("bos", "cls"), "eos": ("eos", "sep"), "unk": ("unk",), "sep": ("sep",), "pad": ("pad",),
           "mask": ("mask",)}  # fmt: skip
"""llama.cpp's names of special tokens -> transformers' names, the first that there is."""


def write_words(writer: Any, source: Source) -> None:
    """Write the tokenizer and the chat template.

    Raises:
        UsageError: llama.cpp has no such tokenizer.
    """
    tokenizer, size = source.tokenizer, source.model.config.vocab_size
    if not tokenizer.is_fast:
        raise _refused("one without tokenizer.json")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    match model["type"]:
        case "WordPiece":
            _word_piece(writer, tokenizer, content, size)
        case "BPE" if model.get("byte_fallback"):
            _sentence_piece(writer, tokenizer, content, size)
        case "BPE":
            _byte_level(writer, tokenizer, content, size)
        case kind:
            raise _refused(kind)
    for name, others in SPECIAL.items():
        ids = [getattr(tokenizer, f"{other}_token_id", None) for other in others]
        if (found := next((one for one in ids if one is not None), None)) is not None:
            getattr(writer, f"add_{name}_token_id")(found)
    before, after = _around(tokenizer)
    writer.add_add_bos_token(before)
    writer.add_add_eos_token(after)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
        from ..tasks._chat_template import end_id

        end = end_id(tokenizer)
        if end is not None and end != tokenizer.eos_token_id:
            writer.add_eot_token_id(end)


def examples(source: Source) -> list[dict[str, Any]]:
    """Return texts and their tokens, special ones around them included: what llama.cpp must make of them too."""
    rows = source.task.golden()
    texts = [text for row in rows for text in row.values() if isinstance(text, str) and text.strip()]
    texts = list(dict.fromkeys([SCRIPTS, "Hello, world!", "  two  spaces\n\nand 12345 lines\n", *texts]))[:12]
    return [{"text": text, "ids": list(source.tokenizer(text, verbose=False)["input_ids"])} for text in texts]


def _around(tokenizer: Any) -> tuple[bool, bool]:
    """Say whether a text begins with the token for its beginning, and ends with that for its end."""
    inside = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    begin, end = (
        next((i for i in (getattr(tokenizer, f"{name}_token_id") for name in SPECIAL[kind]) if i is not None), None)
        for kind in ("bos", "eos")
    )
    for before in (False, True):
        for after in (False, True):
            if whole == [*([begin] if before else []), *inside, *([end] if after else [])]:
                return before, after
    raise _refused(f"one that puts {whole} around {inside}")


def _kinds(tokenizer: Any, content: Mapping[str, Any], size: int) -> tuple[list[str], list[Any]]:
    """Return the word of each id of the model, and what it is to llama.cpp."""
    import gguf

    added = {one["id"]: one for one in content["added_tokens"]}
    words, kinds = [], []
    for place in range(size):
        word = tokenizer.convert_ids_to_tokens(place) if place < len(tokenizer) else None
        if word is None:
            words.append(f"[PAD{place}]")
            kinds.append(gguf.TokenType.UNUSED)
            continue
        words.append(word)
        if place not in added:
            kinds.append(gguf.TokenType.NORMAL)
        else:
            kinds.append(gguf.TokenType.CONTROL if added[place]["special"] else gguf.TokenType.USER_DEFINED)
    return words, kinds


def _byte_level(writer: Any, tokenizer: Any, content: Mapping[str, Any], size: int) -> None:
    """Write a BPE over bytes, as GPT-2, Llama 3 and Qwen have it."""
    model, steps = content["model"], _steps(content["pre_tokenizer"])
    regex, by_bytes = None, [step for step in steps if step["type"] == "ByteLevel"]
    splits = [step for step in steps if step["type"] == "Split"]
    if splits:
        regex = splits[0]["pattern"].get("Regex", "")
    plain = len(by_bytes) == 1 and not by_bytes[0]["add_prefix_space"] and by_bytes[0]["use_regex"] == (not splits)
    known = len(splits) <= 1 and len(steps) == len(by_bytes) + len(splits) and plain
    name = PRE_TOKENIZERS.get((regex, bool(model.get("ignore_merges")))) if known else None
    normalizer = (content.get("normalizer") or {}).get("type")
    if name is None or normalizer not in (None, "NFC"):
        raise _refused(f"one that cuts words by {json.dumps(content['pre_tokenizer'])[:200]}")
    words, kinds = _kinds(tokenizer, content, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges(_merges(model))


def _sentence_piece(writer: Any, tokenizer: Any, content: Mapping[str, Any], size: int) -> None:
    """Write a BPE over characters with bytes for unknown ones, as Llama 2 and Mistral have it.

    llama.cpp joins by scores: the earlier a merge, the higher.
    """
    import gguf

    words, kinds = _kinds(tokenizer, content, size)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(_merges(content["model"])):
        ranks.setdefault(merge.replace(" ", ""), rank)
    scores = [-float(ranks.get(word, len(ranks))) for word in words]
    for place, word in enumerate(words):
        if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            kinds[place] = gguf.TokenType.BYTE
    if tokenizer.unk_token_id is not None:
        kinds[tokenizer.unk_token_id] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(
        tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0].startswith("▁")
    )


def _word_piece(writer: Any, tokenizer: Any, content: Mapping[str, Any], size: int) -> None:
    """Write BERT's pieces: llama.cpp marks the beginnings of words, and not what goes on with one."""
    import gguf

    words, kinds = _kinds(tokenizer, content, size)
    going_on = content["model"]["continuing_subword_prefix"]
    if going_on != "##":
        raise _refused(f"one that goes on with {going_on!r}")
    marked = [
        word if kind != gguf.TokenType.NORMAL else word[2:] if word.startswith("##") else f"▁{word}"
        for word, kind in zip(words, kinds, strict=True)
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(marked)
    writer.add_token_types(kinds)


def _steps(pre_tokenizer: Any) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def _refused(what: str) -> UsageError:
    return UsageError(
        f"llama.cpp has no such tokenizer: {what}",
        hint="it has byte-level BPE with the words of GPT-2, Llama 3 or Qwen, Llama 2's BPE, and BERT's WordPiece",
    )
