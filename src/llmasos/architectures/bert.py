"""BERT and its kin with the same layers: RoBERTa, XLM-RoBERTa, CamemBERT (post-norm encoders).

The head is transformers' own module; only the encoder below it runs here, and of its last layer only what
the head reads.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._bare import opened
from ._embedding import looked_up
from ._post_norm import LayerParameters, LayerShape, encoder_layer, layer_weights
from .base import Dropout, Pack, Prefix, Weights, frozen_layers

# model type -> (attribute of the encoder, whether positions start after the padding id)
_FAMILY = {
    "bert": ("bert", False),
    "roberta": ("roberta", True),
    "xlm-roberta": ("roberta", True),
    "camembert": ("roberta", True),
}


_HEADS = {
    "row": ("ForSequenceClassification",),
    "token": ("ForTokenClassification", "ForQuestionAnswering"),
    "vocabulary": ("ForMaskedLM",),
    "embedding": ("BertModel", "RobertaModel", "CamembertModel"),
}
"""What a task reads -> how the names of the models end that give it."""


class _BertFamily:
    autocast = False

    def reason_against(self, model: nn.Module, output: str) -> str | None:
        """Return why this model cannot be served, or None if it can."""
        config: Any = model.config
        if config.model_type not in _FAMILY:
            return f"model type {config.model_type} is not of this family"
        if not type(model).__name__.endswith(_HEADS[output]):
            return f"{type(model).__name__} has another head"
        if config.hidden_act != "gelu":
            return f"activation {config.hidden_act}"
        if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
            return f"{config.position_embedding_type} positions"
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            return "a decoder"
        if any(hasattr(module, "base_layer") for module in model.modules()):
            return "there is an adapter on its layers"
        for layer in _layers(model):
            parts = (layer.query, layer.key, layer.value)
            if any(len({getattr(part, name).requires_grad for part in parts}) > 1 for name in ("weight", "bias")):
                return "queries, keys and values are one product here, and some of them are frozen alone"
        return None

    def bare(self, folder: Path, output: str) -> nn.Module | None:
        """Open a saved model without transformers, for such outputs; None where that cannot be (``base.bare``)."""
        model = opened(folder)
        with suppress(AttributeError):  # its configuration leaves out a default, which transformers knows
            if model is not None and self.reason_against(model, output) is None:
                return model
        return None

    def layout(self, model: nn.Module) -> list[tuple[Tensor, ...]]:
        """Return the encoder's parameters: the first layers first, projections of one input together."""
        parts: list[tuple[Tensor, ...]] = []
        for layer in _layers(model):
            attention = (layer.query, layer.key, layer.value)
            parts.append(tuple(linear.weight for linear in attention))
            parts.append(tuple(linear.bias for linear in attention))
            for module in (
                layer.attention_output, layer.attention_norm, layer.intermediate, layer.output, layer.output_norm
            ):  # fmt: skip
                parts += [(module.weight,), (module.bias,)]
        return parts

    def embedding(self, model: nn.Module) -> Tensor | None:
        """Return the word embedding; None where it is also the head's matrix, and every row has a gradient."""
        words: Tensor = _encoder(model).embeddings.word_embeddings.weight
        whole: Any = model
        head = whole.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        return None if head is not None and head.weight is words else words

    def prefix(self, model: nn.Module, output: str) -> Prefix | None:
        """Return what is below the trained layers of a model, or None where no layer is."""
        config: Any = model.config
        layers = _frozen(model)
        dropout = max(config.hidden_dropout_prob, config.attention_probs_dropout_prob)
        per_row = output == "row" and layers == config.num_hidden_layers
        return Prefix(layers, config.hidden_size, per_row, dropout) if layers else None

    def forward(self, model: nn.Module, weights: Weights, output: str) -> _BertForward:
        """Bind the forward to a model and to where its weights are."""
        return _BertForward(model, weights, output)


class _BertForward:
    """Embeddings, layers, and transformers' own head where the task reads."""

    def __init__(self, model: nn.Module, weights: Weights, output: str) -> None:
        config: Any = model.config
        self.output = output
        self.model: Any = model
        self.weights = weights
        self.embeddings = _encoder(model).embeddings
        self.after_padding = _FAMILY[config.model_type][1]
        self.shape = LayerShape(
            config.num_attention_heads,
            config.layer_norm_eps,
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
        )
        self.layers = [layer_weights(parts, weights) for parts in _layers(model)]
        self.frozen = _frozen(model)

    def __call__(self, pack: Pack, dropout: Dropout | None = None) -> Tensor:
        """Return what ``output`` says, in float32."""
        return self.above(self.below(pack, dropout), pack, dropout)

    def below(self, pack: Pack, dropout: Dropout | None = None) -> Tensor:
        """Return the states under the trained layers (``DividedForward``)."""
        return self._run(range(self.frozen), self._embed(pack, dropout), pack, dropout)

    def above(self, states: Tensor, pack: Pack, dropout: Dropout | None = None) -> Tensor:
        """Return what ``output`` says, in float32, from what ``below`` gave."""
        x = self._run(range(self.frozen, len(self.layers)), states, pack, dropout)
        if self.output == "row":
            return self._head(x.float(), dropout)
        if self.output == "embedding":
            return pack.means(x[: pack.tokens].float())
        if self.output == "vocabulary":
            assert pack.read is not None
            return self._words(x.index_select(0, pack.read).float())
        return self._tokens(x[: pack.tokens].float(), dropout)

    def _run(self, layers: range, x: Tensor, pack: Pack, dropout: Dropout | None) -> Tensor:
        for i in layers:
            only = pack.first if self.output == "row" and i == len(self.layers) - 1 else None
            x = encoder_layer(x, self.layers[i], self.shape, pack.groups, dropout, only=only)
        return x

    def _tokens(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        """The head on every token."""
        model, config = self.model, self.model.config
        if hasattr(model, "qa_outputs"):
            return model.qa_outputs(x)  # type: ignore[no-any-return]
        p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        return model.classifier(_drop(x, p, dropout))  # type: ignore[no-any-return]

    def _words(self, x: Tensor) -> Tensor:
        """Logits over the vocabulary; the product with it, by far the largest, in the precision of the work."""
        model: Any = self.model
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.weights.dtype == torch.bfloat16):
            return (model.cls if hasattr(model, "cls") else model.lm_head)(x)  # type: ignore[no-any-return]

    def _embed(self, pack: Pack, dropout: Dropout | None) -> Tensor:
        table = self.embeddings
        words = table.word_embeddings
        word = looked_up(pack.ids, words, self.weights)
        positions = self._positions_after(table.padding_idx, pack) if self.after_padding else pack.positions
        types = torch.zeros_like(pack.ids) if pack.types is None else pack.types
        x = word + (table.position_embeddings(positions) + table.token_type_embeddings(types)).to(word.dtype)
        norm = table.LayerNorm
        x = functional.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(word.dtype)
        return _drop(x, self.shape.hidden_dropout, dropout)

    @staticmethod
    def _positions_after(padding: int, pack: Pack) -> Tensor:
        """Count positions as RoBERTa does: from the padding id on, passing over padding ids written in a text."""
        counted = (pack.ids != padding).long()
        if bool(counted.all()):
            return pack.positions + padding + 1
        total = counted.cumsum(0)
        row = (pack.positions == 0).cumsum(0) - 1
        before = (total - counted)[pack.first]
        places = (total - before[row]) * counted + padding
        places[pack.tokens :] = padding  # behind the last row
        return places

    def _head(self, first: Tensor, dropout: Dropout | None) -> Tensor:
        """The head's modules, in float32; their dropout is drawn from our generator."""
        model, config = self.model, self.model.config
        p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        if hasattr(model, "bert"):  # pooler, then one linear layer
            return model.classifier(_drop(model.bert.pooler(first[:, None]), p, dropout))  # type: ignore[no-any-return]
        head = model.classifier
        inner = torch.tanh(head.dense(_drop(first, p, dropout)))
        return head.out_proj(_drop(inner, p, dropout))  # type: ignore[no-any-return]


def _drop(x: Tensor, p: float, dropout: Dropout | None) -> Tensor:
    mask = dropout.mask(x.shape, p, x) if dropout else None
    return x if mask is None else x * mask * (1.0 / (1.0 - Dropout.rounded(p)))


def _encoder(model: nn.Module) -> Any:
    config: Any = model.config
    return getattr(model, _FAMILY[config.model_type][0], model)


def _frozen(model: nn.Module) -> int:
    return frozen_layers(_encoder(model).embeddings, _encoder(model).encoder.layer)


def _layers(model: nn.Module) -> list[LayerParameters]:
    return [
        LayerParameters(
            layer.attention.self.query,
            layer.attention.self.key,
            layer.attention.self.value,
            layer.attention.output.dense,
            layer.attention.output.LayerNorm,
            layer.intermediate.dense,
            layer.output.dense,
            layer.output.LayerNorm,
        )
        for layer in _encoder(model).encoder.layer
    ]


PLUGIN = _BertFamily()
