"""The modules of an encoder of the BERT family, without transformers: its own code takes two seconds to import.

They have transformers' names and shapes, so the packed forward of ``bert.py`` and the weights of a saved folder fit
them. They compute nothing by themselves but the head; whoever opens a model so compares it with its golden rows, which
transformers' own forward has given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import bundle

_BASE = {
    "Bert": ("bert", True), "Roberta": ("roberta", False), "XLMRoberta": ("roberta", False),
    "Camembert": ("roberta", False),
}  # fmt: skip
"""How the names of a family's models begin; what they call their encoder, and whether a pooler is part of it."""
_HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


class Kind(NamedTuple):
    """What a model is called, its encoder, whether that has a pooler, and the model's head."""

    name: str
    base: str
    pools: bool
    head: str

    @property
    def classifies(self) -> bool:
        """Whether a row has one answer."""
        return self.head == "ForSequenceClassification"


def kind(folder: Path) -> Kind | None:
    """Return what the model of a folder is; None where it is not of this family."""
    named = (_config(folder).get("architectures") or [""])[0]
    return next((Kind(named, *base, head) for family, base in _BASE.items() for head in _HEADS
                 if named == family + head), None)  # fmt: skip


def opened(folder: Path) -> nn.Module | None:
    """Open the weights of a folder in float32; None where it is not of this family, or not all of it is there."""
    if (found := kind(folder)) is None:
        return None
    weights = _weights(folder)
    try:
        model = _modules(found, SimpleNamespace(**_config(folder)), weights)
        own = {name: weights[name].to(torch.float32, copy=True) for name in model.state_dict()}  # else it is the file
        model.load_state_dict(own, assign=True)
    except (KeyError, AttributeError, RuntimeError):  # another layout, or another version's: transformers knows it
        return None
    return model.eval()


def _config(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    out: dict[str, Tensor] = {}
    for file in bundle.weight_files(folder):
        out |= load_file(folder / file)
    return out


class _Tree(nn.Module):
    """Modules by their names."""

    def __init__(self, /, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device


class _Linear(nn.Linear):
    """A linear layer without numbers; torch would draw them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device="meta"))
        self.bias = nn.Parameter(torch.empty(outputs, device="meta"))


class _Pooler(nn.Module):
    """What the head of BERT reads of the first token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = _Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (rows, width) of the states (rows, tokens, width)."""
        return torch.tanh(self.dense(hidden[:, 0]))


def _modules(made: Kind, config: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """Make the modules, without memory for their weights."""
    model = encoder = _encoder(config)
    if made.head != "Model":
        if made.pools and made.classifies:
            encoder.add_module("pooler", _Pooler(config.hidden_size))
        name = "qa_outputs" if made.head == "ForQuestionAnswering" else "classifier"
        deep = made.classifies and not made.pools  # the head of RoBERTa has two layers
        outputs = len(weights[f"{name}.out_proj.bias" if deep else f"{name}.bias"])
        last = _Linear(config.hidden_size, outputs)
        head = _Tree(dense=_Linear(config.hidden_size, config.hidden_size), out_proj=last) if deep else last
        model = _Tree(**{made.base: encoder, name: head})
    model.__class__ = type(made.name, (_Tree,), {})  # by its name a family says what it computes
    model.config = config
    return model


def _encoder(config: Any) -> nn.Module:
    width, inner = config.hidden_size, config.intermediate_size

    def norm() -> nn.Module:
        return nn.LayerNorm(width, eps=config.layer_norm_eps)

    def layer() -> nn.Module:
        projections = {name: _Linear(width, width) for name in ("query", "key", "value")}
        attention = {"self": _Tree(**projections), "output": _Tree(dense=_Linear(width, width), LayerNorm=norm())}
        return _Tree(attention=_Tree(**attention), intermediate=_Tree(dense=_Linear(width, inner)),
                     output=_Tree(dense=_Linear(inner, width), LayerNorm=norm()))  # fmt: skip

    def table(rows: int, padding: int | None = None) -> nn.Module:
        return nn.Embedding(rows, width, padding_idx=padding, _weight=torch.empty(rows, width, device="meta"))

    embeddings = _Tree(
        word_embeddings=table(config.vocab_size, config.pad_token_id),
        position_embeddings=table(config.max_position_embeddings),
        token_type_embeddings=table(config.type_vocab_size), LayerNorm=norm(),
    )  # fmt: skip
    embeddings.padding_idx = config.pad_token_id
    layers = nn.ModuleList(layer() for _ in range(config.num_hidden_layers))
    return _Tree(embeddings=embeddings, encoder=_Tree(layer=layers))
