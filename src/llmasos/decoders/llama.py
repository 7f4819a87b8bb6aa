"""Llama and its relatives (Qwen2, Qwen3, Mistral, Gemma): one step is matrix products and little else.

Queries, keys and values are one product, gate and up another, and keys and values of a layer lie in one
array of fixed size, so that a step allocates next to nothing and appending is one copy. Rows are aligned
at their ends: all of them write to the same place, a mask hides what lies before a short prompt, and the
query heads of one key head are attended as if they were positions, so that grouped heads cost no copies.
Prompts are read without padding, end to end, each attending to itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._linear import Linear
from ._low_rank import adds
from ._prefixes import BLOCK, Prefixes
from .base import Decoder, cache_dtype

GRAIN = 32
"""Lengths are rounded up to it: products and attention are compiled for their shapes, which must recur."""
SPARE = 128
"""Steps after which rows move again, where requests join at any time: moving copies all that was read."""
PACK = 512
"""Tokens of prompts that are read at once: enough for the products, few enough for the caches."""
_TYPES = ("llama", "qwen2", "qwen3", "mistral", "gemma")
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
}


class _Layer(NamedTuple):
    qkv: Linear
    output: Linear
    up: Linear
    down: Linear
    norms: tuple[Tensor, Tensor]
    head_norms: Tensor | None  # (query heads + key heads, head width), or None


class _Llama:
    """The family; see ``decoders/base.py``."""

    def reason_against(self, model: nn.Module) -> str | None:
        """Return why this model cannot be served, or None."""
        config: Any = model.config
        if config.model_type not in _TYPES:
            return f"{config.model_type} is not in this family"
        if getattr(config, "sliding_window", None):
            return "it attends in a sliding window"
        if config.rope_parameters["rope_type"] not in _FIXED_ROPE:
            return f"its positions are of type {config.rope_parameters['rope_type']}"
        if config.hidden_act not in _ACTIVATIONS:
            return f"its activation is {config.hidden_act}"
        whole: Any = model
        if not isinstance(whole.model.embed_tokens, nn.Embedding) or type(whole.lm_head) is not nn.Linear:
            return "its words carry an adapter"
        if any(type(m) is not nn.Linear and not adds(m) for layer in _layers(model) for m in _linear_of(layer)):
            return "its linear layers carry adapters other than LoRA"
        return None

    def bind(self, model: nn.Module, dtype: torch.dtype, others: Sequence[nn.Module] = ()) -> Decoder:
        """Return a decoder over weights laid out for it."""
        return _LlamaDecoder(model, dtype, others)


def _layers(model: Any) -> Any:
    return model.model.layers


def _products(layer: Any) -> tuple[list[Any], ...]:
    """Return the linear layers of each product."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
    return qkv, [attention.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]


def _linear_of(layer: Any) -> Iterator[nn.Module]:
    return (module for product in _products(layer) for module in product)


class _LlamaDecoder:
    how = ""
    start: int | None = None
    joins = True
    prefixes: Prefixes | None = None

    @torch.inference_mode()
    def __init__(self, model: Any, dtype: torch.dtype, others: Sequence[Any] = ()) -> None:
        config = model.config
        self.dtype, self.device = dtype, model.lm_head.weight.device
        self.cache_dtype = cache_dtype(self.device, dtype)
        self.embed, self.rotary = model.model.embed_tokens, model.model.rotary_emb
        first = model.model.layers[0].self_attn
        self.width = int(first.head_dim)
        self.queries, self.keys = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.scale = float(first.scaling)
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.epsilon = float(config.rms_norm_eps)
        self.offset = 1.0 if config.model_type == "gemma" else 0.0
        self.layers = [self._laid_out(*same) for same in zip(*map(_layers, (model, *others)), strict=True)]
        self.norm = self._norm_weight(model.model.norm)
        self.head = Linear([model.lm_head], dtype)
        self.cos = self.sin = torch.empty(0)
        self.cache: list[Tensor] = []  # of each layer: (rows, keys and values, places, head width)
        self.members: Sequence[int] | None = None
        self.which = torch.empty(0, dtype=torch.int64)  # of each row, the model that computes it

    def _laid_out(self, layer: Any, *others: Any) -> _Layer:
        """Lay a layer out, and what the same layer of other models adds to it."""
        attention = layer.self_attn
        (qkv, output, up, down), *more = map(_products, (layer, *others))
        heads = None
        if hasattr(attention, "q_norm"):
            query, key = self._norm_weight(attention.q_norm), self._norm_weight(attention.k_norm)
            heads = torch.stack([query] * self.queries + [key] * self.keys)
        return _Layer(
            qkv=Linear(qkv, self.dtype, [one[0] for one in more]),
            output=Linear(output, self.dtype, [one[1] for one in more]),
            up=Linear(up, self.dtype, [one[2] for one in more]),
            down=Linear(down, self.dtype, [one[3] for one in more]),
            norms=(self._norm_weight(layer.input_layernorm), self._norm_weight(layer.post_attention_layernorm)),
            head_norms=heads,
        )

    def _norm_weight(self, norm: Any) -> Tensor:
        weight: Tensor = norm.weight.detach()
        return (weight.float() + self.offset).to(self.dtype)

    # -- the three verbs ----------------------------------------------------------------------------

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]], room: int, salts: Sequence[str] | None = None) -> Tensor:
        """Read prompts; see ``decoders/base.py``."""
        self.at = max(map(len, prompts))
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.which = self._members(len(prompts))
        self.cache = []
        self._lay_out(self.at, _rounded(self.at + room))
        return self._logits(self._prompts(prompts, range(len(prompts)), salts))

    @torch.inference_mode()
    def join(
        self, prompts: Sequence[Sequence[int]], room: int, rows: Sequence[int], salts: Sequence[str] | None = None
    ) -> Tensor:
        """Read more prompts into some rows; see ``decoders/base.py``."""
        new = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        here = torch.tensor(rows, device=self.device)
        more = self.lengths.new_zeros(max(0, rows[-1] + 1 - len(self.lengths)))
        lengths, self.which = torch.cat([self.lengths, more]), torch.cat([self.which, more])
        lengths[here], self.which[here] = new, self._members(len(prompts))
        places, self.lengths = self.cache[0].shape[2], lengths
        longest = int(lengths.max())
        if longest > self.at or self.at + room > places:  # all move, to have room for so many steps more
            left = max(room, places - self.at)
            self._lay_out(longest, _rounded(longest + left + SPARE))
        else:
            self._lay_out(self.at, places)
        return self._logits(self._prompts(prompts, rows, salts))

    def _members(self, prompts: int) -> Tensor:
        """Return which model computes each of some new prompts."""
        return torch.tensor(self.members or [0] * prompts, device=self.device)

    def _lay_out(self, at: int, places: int) -> None:
        """Have every row end at ``at`` in arrays of so many places; what was read stays."""
        rows, kept = len(self.lengths), min(self.at, at)
        shape = (rows, 2 * self.keys, places, self.width)
        if not self.cache:
            self.cache = [torch.zeros(shape, dtype=self.cache_dtype, device=self.device) for _ in self.layers]
        elif (len(self.cache[0]), self.at, self.cache[0].shape[2]) != (rows, at, places):
            for number, cache in enumerate(self.cache):
                fresh = cache.new_zeros(shape)
                fresh[: len(cache), :, at - kept : at] = cache[:, :, self.at - kept : self.at]
                self.cache[number] = fresh
        self.at = at
        self._tables(places)
        place = torch.arange(places, device=self.device)[None]
        hidden = (place < (at - self.lengths)[:, None]) | (place >= at)
        mask = torch.zeros(rows, 1, 1, places, device=self.device)
        self.mask = mask.masked_fill_(hidden[:, None, None], float("-inf")).to(self.cache_dtype)

    def _prompts(self, prompts: Sequence[Sequence[int]], rows: Sequence[int], salts: Sequence[str] | None) -> Tensor:
        """Read prompts into rows, but for what is known of them; return their last states, (prompts, hidden)."""
        known = [self._known(*one) for one in zip(prompts, rows, salts, strict=True)] if salts else [0] * len(prompts)
        rest = [prompt[past:] for prompt, past in zip(prompts, known, strict=True)]
        out = None
        for pack in _packs(rest):
            hidden = self._read([rest[one] for one in pack], [rows[one] for one in pack], [known[one] for one in pack])
            out = hidden.new_empty(len(prompts), hidden.shape[1]) if out is None else out
            out[torch.tensor(pack, device=self.device)] = hidden
        assert out is not None
        for prompt, row, salt in zip(prompts, rows, salts or (), strict=bool(salts)):
            self._remember(prompt, row, salt)
        return out

    def _known(self, prompt: Sequence[int], row: int, salt: str) -> int:
        """Put what is known of a prompt's beginning into its row; return how many tokens that are."""
        blocks = self.prefixes.find(self._salt(salt, row), prompt) if self.prefixes else []
        for number, block in enumerate(blocks):
            at = self.at - len(prompt) + BLOCK * number
            for cache, values in zip(self.cache, block, strict=True):
                cache[row, :, at : at + BLOCK] = values
        return BLOCK * len(blocks)

    def _remember(self, prompt: Sequence[int], row: int, salt: str) -> None:
        if self.prefixes is None:
            return
        begin = self.at - len(prompt)

        def read(start: int) -> Tensor:
            return torch.stack([cache[row, :, begin + start : begin + start + BLOCK] for cache in self.cache])

        self.prefixes.keep(self._salt(salt, row), prompt, read)

    def _salt(self, salt: str, row: int) -> str:
        """Let nothing that one model has read be taken for another's."""
        return f"{int(self.which[row])} {salt}"

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """Append a token to each row; see ``decoders/base.py``."""
        place, until = self.at, min(_rounded(self.at + 1), self.mask.shape[-1])
        self.mask[..., place] = 0.0
        mask = self.mask[..., :until]
        x = self.embed(ids).to(self.dtype)
        cos, sin = self.cos[self.lengths], self.sin[self.lengths]  # (rows, 1, head width)
        rows, keys = len(ids), self.keys
        for layer, cache in zip(self.layers, self.cache, strict=True):
            query, both = self._projected(x, layer, cos, sin, self.which)
            cache[:, :, place] = both
            query = query.view(rows, keys, self.queries // keys, self.width).to(self.cache_dtype)
            context = functional.scaled_dot_product_attention(
                query, cache[:, :keys, :until], cache[:, keys:, :until], mask, scale=self.scale
            )
            x = self._rest(x, context.reshape(rows, -1).to(self.dtype), layer, self.which)
        self.at, self.lengths = place + 1, self.lengths + 1
        return self._logits(x)

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        """Go on with these rows; see ``decoders/base.py``."""
        self.lengths, self.mask, self.which = self.lengths[rows], self.mask[rows], self.which[rows]
        for number, cache in enumerate(self.cache):
            fresh = cache if len(rows) == len(cache) else cache.new_zeros(len(rows), *cache.shape[1:])
            fresh[:, :, : self.at] = cache[:, :, : self.at].index_select(0, rows)
            self.cache[number] = fresh

    # -- the parts ----------------------------------------------------------------------------------

    def _tables(self, places: int) -> None:
        """Tabulate the rotations (Su et al. 2021), the sine with the sign of ``rotate_half``."""
        places = -(-places // 256) * 256
        if len(self.cos) >= places:
            return
        like = torch.zeros(1, dtype=torch.float32, device=self.device)
        cos, sin = self.rotary(like, torch.arange(places, device=self.device)[None])
        sign = torch.ones(self.width, device=self.device)
        sign[: self.width // 2] = -1.0
        self.cos = cos[0, :, None].to(self.dtype)
        self.sin = (sin[0, :, None] * sign).to(self.dtype)

    def _projected(self, x: Tensor, layer: _Layer, cos: Tensor, sin: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated queries, (tokens, heads, width), and rotated keys beside values."""
        normed = functional.rms_norm(x, (x.shape[1],), layer.norms[0], self.epsilon)
        qkv = layer.qkv(normed, which).view(len(x), -1, self.width)
        turning = qkv[:, : self.queries + self.keys]
        if layer.head_norms is not None:
            turning = functional.rms_norm(turning, (self.width,), None, self.epsilon) * layer.head_norms
        turned = torch.addcmul(turning * cos, turning.roll(self.width // 2, -1), sin)
        both = qkv[:, self.queries :]
        both[:, : self.keys] = turned[:, self.queries :]
        return turned[:, : self.queries], both

    def _rest(self, x: Tensor, context: Tensor, layer: _Layer, which: Tensor) -> Tensor:
        """From attention's context to the layer's output. (tokens, hidden)."""
        x = layer.output(context, which).add_(x)
        up = layer.up(functional.rms_norm(x, (x.shape[1],), layer.norms[1], self.epsilon), which)
        gate, up = up.chunk(2, dim=1)
        return layer.down(self.activation(gate).mul_(up), which).add_(x)

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(functional.rms_norm(x, (x.shape[1],), self.norm, self.epsilon)).float()

    def _read(self, prompts: list[Sequence[int]], rows: list[int], pasts: list[int]) -> Tensor:
        """Read prompts end to end, keep their keys and values; return their last states, (prompts, hidden).

        ``pasts``: how many tokens before each are there already.
        """
        sizes = [(len(prompt), past) for prompt, past in zip(prompts, pasts, strict=True)]
        fill = -sum(map(len, prompts)) % GRAIN
        ids = torch.tensor([*(i for prompt in prompts for i in prompt), *[prompts[0][0]] * fill], device=self.device)
        places = (past + place for length, past in sizes for place in range(length))
        positions = torch.tensor([*places, *[0] * fill], device=self.device)
        lengths = torch.tensor([*map(len, prompts), fill], device=self.device)
        which = self.which[torch.tensor([*rows, rows[0]], device=self.device)].repeat_interleave(lengths)
        x: Tensor = self.embed(ids).to(self.dtype)
        cos, sin = self.cos[positions], self.sin[positions]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            query, both = self._projected(x, layer, cos, sin, which)
            context = torch.zeros(len(x), self.queries * self.width, dtype=self.dtype, device=self.device)
            for begin, first, count, (length, past) in _runs(sizes):
                at, here = slice(begin, begin + count * length), rows[first : first + count]
                kv = both[at].view(count, length, -1, self.width).transpose(1, 2)
                for row, new in zip(here, kv, strict=True):
                    cache[row, :, self.at - length : self.at] = new
                if past:
                    kv = cache[here, :, self.at - length - past : self.at]
                q = query[at].view(count, length, -1, self.width).transpose(1, 2)
                out = self._attended(q, kv[:, : self.keys], kv[:, self.keys :])
                context[at] = out.transpose(1, 2).reshape(count * length, -1)
            x = self._rest(x, context, layer, which)
        last = torch.tensor([length for length, _ in sizes], device=self.device).cumsum(0) - 1
        return x.index_select(0, last)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        share, (new, whole), q = self.queries // self.keys, (q.shape[2], k.shape[2]), q.to(k.dtype)
        if share > 1:
            k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        if new == whole:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        seen = torch.ones(new, whole, dtype=torch.bool, device=q.device).tril(whole - new)
        return functional.scaled_dot_product_attention(q, k, v, seen, scale=self.scale)


def _rounded(places: int) -> int:
    return -(-places // GRAIN) * GRAIN


def _packs(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Cut prompts, longest first, into packs of at most ``PACK`` tokens, or of one prompt."""
    pack: list[int] = []
    tokens = 0
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row])):
        if pack and tokens + len(prompts[row]) > PACK:
            yield pack
            pack, tokens = [], 0
        pack.append(row)
        tokens += len(prompts[row])
    yield pack


def _runs(sizes: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
    """Yield neighbours of equal length and past: first token, first prompt, number of prompts, length and past."""
    begin = first = 0
    for size, same in groupby(sizes):
        count = len(list(same))
        yield begin, first, count, size
        begin, first = begin + count * size[0], first + count


PLUGIN = _Llama()
