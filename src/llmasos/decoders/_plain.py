"""Transformers' own forward with transformers' own cache, one token at a time.

Decoder-only models read prompts of unequal length aligned at their ends, what lies before hidden by the mask
and not counted in the positions; encoder-decoder models read them in the encoder, once, and start to write
from their start token.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._prefixes import Prefixes
from .base import Alone, Decoder


def plain(model: nn.Module, dtype: torch.dtype) -> Decoder:
    """Return the decoder for any model that transformers can write with."""
    if next(model.parameters()).dtype != dtype:
        model = copy.deepcopy(model).to(dtype)
    encodes: bool = model.config.is_encoder_decoder  # type: ignore[union-attr,assignment]
    return _EncoderDecoder(model.eval()) if encodes else _DecoderOnly(model.eval())


class _DecoderOnly:
    how = ""
    start: int | None = None
    prefixes: Prefixes | None = None
    members: Sequence[int] | None = None

    def __init__(self, model: Any) -> None:
        self.model = model
        self.positions = "position_ids" in inspect.signature(model.forward).parameters
        self.cache: Any = None

    @property
    def joins(self) -> bool:
        """Whether all that is kept of the past are keys and values of every token."""
        from transformers.cache_utils import DynamicLayer

        return self.cache is not None and all(type(layer) is DynamicLayer for layer in self.cache.layers)

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]], room: int, salts: Sequence[str] | None = None) -> Tensor:
        """Read prompts; see ``decoders/base.py``."""
        del room, salts
        self.cache = None
        longest = max(map(len, prompts))
        ids = torch.tensor([[*[prompt[0]] * (longest - len(prompt)), *prompt] for prompt in prompts])
        mask = torch.tensor([[*[0] * (longest - len(prompt)), *[1] * len(prompt)] for prompt in prompts])
        self.mask = mask.to(self.model.device)
        return self._forward(ids.to(self.model.device))

    @torch.inference_mode()
    def join(
        self, prompts: Sequence[Sequence[int]], room: int, rows: Sequence[int], salts: Sequence[str] | None = None
    ) -> Tensor:
        """Read more prompts into some rows; see ``decoders/base.py``."""
        del salts
        cache, mask = self.cache, self.mask
        logits = self.begin(prompts, room)
        more = max(0, rows[-1] + 1 - len(mask))
        here = torch.tensor(rows, device=mask.device)
        mask = torch.cat([mask, mask.new_zeros(more, mask.shape[1])])
        mask[here] = 0
        width = max(self.mask.shape[1], int(mask.sum(1).max()))  # what no row needs any more is left behind
        for old, new in zip(cache.layers, self.cache.layers, strict=True):
            for name in ("keys", "values"):
                grown = _fitted(getattr(old, name), width, more)
                grown[here] = _fitted(getattr(new, name), width, 0)
                setattr(old, name, grown)
        self.mask, read = _fitted(mask[:, None, :, None], width, 0)[:, 0, :, 0], self.mask
        self.mask[here] = _fitted(read[:, None, :, None], width, 0)[:, 0, :, 0]
        self.cache = cache
        return logits

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """Append a token to each row; see ``decoders/base.py``."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        return self._forward(ids[:, None])

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        """Go on with these rows; see ``decoders/base.py``."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)

    def _forward(self, ids: Tensor) -> Tensor:
        more: dict[str, Any] = {}
        if self.positions:
            more["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            more["logits_to_keep"] = 1
        out = self.model(input_ids=ids, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **more)
        self.cache = out.past_key_values
        return out.logits[:, -1].float()  # type: ignore[no-any-return]


def _fitted(values: Tensor, width: int, more: int) -> Tensor:
    """Return (rows + more, heads, width, size) of (rows, heads, tokens, size), aligned at the ends, zeros elsewhere."""
    kept = values[:, :, max(0, values.shape[2] - width) :]
    return torch.nn.functional.pad(kept, (0, 0, width - kept.shape[2], 0, 0, 0, 0, more))


class _EncoderDecoder(Alone):
    how = ""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.start: int | None = None

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]], room: int, salts: Sequence[str] | None = None) -> Tensor:
        """Read prompts in the encoder; see ``decoders/base.py``."""
        del room, salts
        self.cache = None
        longest, device = max(map(len, prompts)), self.model.device
        pad = self.model.config.pad_token_id or 0
        ids = torch.tensor([[*prompt, *[pad] * (longest - len(prompt))] for prompt in prompts], device=device)
        inside = [[*[1] * len(prompt), *[0] * (longest - len(prompt))] for prompt in prompts]
        self.mask = torch.tensor(inside, device=device)
        self.states = self.model.get_encoder()(input_ids=ids, attention_mask=self.mask).last_hidden_state
        start = start_of(self.model) if self.start is None else self.start
        return self._forward(torch.full((len(prompts), 1), start, device=device))

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """Append a token to each row; see ``decoders/base.py``."""
        return self._forward(ids[:, None])

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        """Go on with these rows; see ``decoders/base.py``."""
        self.mask, self.states = self.mask[rows], self.states[rows]
        self.cache.batch_select_indices(rows)  # type: ignore[attr-defined]

    def _forward(self, ids: Tensor) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        out = self.model(
            decoder_input_ids=ids, encoder_outputs=BaseModelOutput(last_hidden_state=self.states),
            attention_mask=self.mask, past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        self.cache = out.past_key_values
        return out.logits[:, -1].float()  # type: ignore[no-any-return]


def start_of(model: Any) -> int:
    """Return the id from which an encoder-decoder model begins to write."""
    for settings in (getattr(model, "generation_config", None), model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            value = getattr(settings, name, None)
            if value is not None:
                return int(value)
    return int(model.config.pad_token_id or 0)
