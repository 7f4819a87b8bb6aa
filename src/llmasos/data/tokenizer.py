"""The tokenizer of a model folder without transformers: the same ids, over the tokenizers library alone.

transformers' tokenizers are a layer over that library which keeps its state in ``tokenizer.json`` and
``tokenizer_config.json``. Here is as much of that layer as the tasks use, under the same names. That it gives the same
is checked for each model when it is exported, and by its golden rows wherever it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import BundleError

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_UNLIMITED = int(1e30)  # transformers' own number for a tokenizer that says nothing
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_SPACES = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
           (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


class Tokens(dict[str, Any]):
    """What a call gives: lists under transformers' names; ``encodings`` are the library's own, one for each."""

    def __init__(self, content: dict[str, Any], encodings: list[Any]) -> None:
        super().__init__(content)
        self.encodings = encodings

    def sequence_ids(self, index: int = 0) -> list[int | None]:
        """Return for each token which of the two texts it is from; None for special tokens."""
        return self.encodings[index].sequence_ids  # type: ignore[no-any-return]

    def word_ids(self, index: int = 0) -> list[int | None]:
        """Return for each token the word that it is from; None for special tokens."""
        return self.encodings[index].word_ids  # type: ignore[no-any-return]


class LightTokenizer:
    """A tokenizer, called as transformers' are; use ``opened``.

    Attributes:
        model_max_length: the most tokens that it was made for.
        model_input_names: which lists a call gives where nothing else is asked for.
        special_tokens_map: the named special tokens; ``pad_token``, ``pad_token_id`` and so on are attributes too, None
            where there is none.
    """

    is_fast = True

    def __init__(self, backend: Any, config: dict[str, Any]) -> None:
        self.backend_tokenizer = backend
        self.model_max_length: int = config.get("model_max_length") or _UNLIMITED
        self.model_input_names: tuple[str, ...] = tuple(
            config.get("model_input_names") or ("input_ids", "token_type_ids", "attention_mask")
        )
        self.special_tokens_map = {name: _content(config[name]) for name in NAMED if config.get(name) is not None}
        self._truncation_side = config.get("truncation_side", "right")
        self._cleans = bool(config.get("clean_up_tokenization_spaces", False))
        named = list(self.special_tokens_map.values())
        self.all_special_tokens = list(dict.fromkeys([*named, *_extra(config)]))
        for name in NAMED:
            token = self.special_tokens_map.get(name)
            setattr(self, name, token)
            setattr(self, f"{name}_id", None if token is None else backend.token_to_id(token))

    def __getattr__(self, name: str) -> Any:
        """Refuse what is not here; the special tokens are set when it is made."""
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of ``all_special_tokens``."""
        return [self.backend_tokenizer.token_to_id(token) for token in self.all_special_tokens]

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        stride: int = 0,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        verbose: bool = True,
    ) -> Tokens:
        """Tokenise a text, a pair, or lists of them.

        Args:
            text, text_pair: texts; a list of pairs is two lists.
            add_special_tokens: whether the model's own tokens are set around them.
            truncation: ``True`` or "longest_first", "only_first", "only_second"; ``False`` cuts nothing.
            max_length: what is cut to, special tokens included; ``model_max_length`` if not given.
            stride: tokens that neighbouring parts of a cut text share.
            return_overflowing_tokens: also give the parts that were cut off, each a sequence of its own;
                ``overflow_to_sample_mapping`` says of which text.
            return_token_type_ids, return_attention_mask: by ``model_input_names`` if None.
            return_special_tokens_mask, return_offsets_mapping: more lists.
            verbose: nothing is ever said here.
        """
        del verbose
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        pairs = None if text_pair is None or (single and not text_pair) else [text_pair] if single else list(text_pair)
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(pairs)} second texts")
        self._truncate(truncation, max_length, stride)
        given = texts if pairs is None else list(zip(texts, pairs, strict=True))
        found = self.backend_tokenizer.encode_batch(given, add_special_tokens=add_special_tokens)
        parts = [[one, *one.overflowing] if return_overflowing_tokens else [one] for one in found]
        encodings = [one for whole in parts for one in whole]
        content: dict[str, Any] = {"input_ids": [one.ids for one in encodings]}
        if self._gives("token_type_ids", return_token_type_ids):
            content["token_type_ids"] = [one.type_ids for one in encodings]
        if self._gives("attention_mask", return_attention_mask):
            content["attention_mask"] = [one.attention_mask for one in encodings]
        if return_special_tokens_mask:
            content["special_tokens_mask"] = [one.special_tokens_mask for one in encodings]
        if return_offsets_mapping:
            content["offset_mapping"] = [one.offsets for one in encodings]
        if return_overflowing_tokens:
            content["overflow_to_sample_mapping"] = [i for i, whole in enumerate(parts) for _ in whole]
        elif single:
            content = {name: values[0] for name, values in content.items()}
        return Tokens(content, encodings)

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """Turn ids into text."""
        ids = [ids] if isinstance(ids, int) else [int(i) for i in ids]
        text = str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
        if self._cleans and type(self.backend_tokenizer.model).__name__ != "BPE":
            for before, after in _SPACES:
                text = text.replace(before, after)
        return text

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> Any:
        """Return the token of an id, or of each."""
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(int(i)) for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Return the id of a token, or of each: that of the unknown token where it is none."""
        if isinstance(tokens, str):
            found = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def _gives(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _truncate(self, truncation: bool | str, max_length: int | None, stride: int) -> None:
        """Set how the library cuts; it keeps that from call to call."""
        length = self.model_max_length if max_length is None else max_length
        backend = self.backend_tokenizer
        if not truncation or truncation == "do_not_truncate" or length > 1 << 60:
            if backend.truncation is not None:
                backend.no_truncation()
            return
        strategy = "longest_first" if truncation is True else truncation
        wanted = {"max_length": length, "stride": stride, "strategy": strategy, "direction": self._truncation_side}
        if backend.truncation is None or any(backend.truncation[name] != value for name, value in wanted.items()):
            backend.enable_truncation(**wanted)


def opened(folder: Path) -> LightTokenizer:
    """Open the tokenizer of a model folder.

    Raises:
        BundleError: it has no ``tokenizer.json``, a damaged one, or one that lacks a special token.
    """
    from tokenizers import Tokenizer

    path = folder / FILE
    if not path.is_file():
        raise BundleError(f"{folder} has no {FILE}", hint="take the folder of a model with a fast tokenizer, whole")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else {}
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(
            f"the tokenizer in {folder} cannot be opened: {reason}", hint="copy the model again"
        ) from error
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
    found = LightTokenizer(backend, config)
    missing = [token for token in found.all_special_tokens if backend.token_to_id(token) is None]
    if missing:
        raise BundleError(f"{path} lacks the tokens {', '.join(missing)} that {CONFIG} names",
                          hint="take the tokenizer files of the model itself")  # fmt: skip
    return found


def longest_input(folder: Path, tokenizer: Any) -> int:
    """Return how many tokens a model takes, as ``loading.py`` does, from ``config.json`` as it is written.

    Raises:
        BundleError: there is no such file, or it makes no sense.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind, padding = str(content.get("model_type", "")), content.get("pad_token_id")
        positions = int(content.get("max_position_embeddings") or 1 << 30)
        return longest(kind, positions, padding, tokenizer.model_max_length)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", hint="copy or export the model again") from error


def longest(kind: str, positions: int, padding: int | None, limit: int) -> int:
    """Return how many tokens a model takes, special tokens included.

    Args:
        kind: transformers' ``model_type``.
        positions: how many it has embeddings for.
        padding: its padding id.
        limit: the tokenizer's own limit.
    """
    if "roberta" in kind or kind == "camembert":
        positions -= (padding or 0) + 1  # their positions start after the padding id
    found = min(int(limit), positions)
    return found if found < 1 << 24 else 4096


def _content(token: Any) -> str:
    """Return a special token as text; a configuration may say more of it."""
    return str(token["content"] if isinstance(token, dict) else token)


def _extra(config: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name in _EXTRA:
        more = config.get(name) or []
        found += map(_content, more.values() if isinstance(more, dict) else more)
    return found
