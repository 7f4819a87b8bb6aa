"""KerasHub's models in the shape of a transformers configuration: said in JSON by the run, built by the process.

KerasHub writes some choices of an architecture into its code that transformers leaves to the configuration: the
activation (an approximate GELU in BERT) and the epsilon of the norms. They are set on the built layers.
"""

from __future__ import annotations

from typing import Any

_ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_approximate", "gelu_pytorch_tanh": "gelu_approximate", "relu": "relu"
}  # fmt: skip
"""transformers' names that mean what is known here, and ours."""

WITH_DROPOUT = ("bert", "gpt2")
"""Where KerasHub drops out what transformers does; its Llama does so at other places."""


def described(config: Any) -> dict[str, Any]:
    """Return the shape of a model, from its transformers configuration, as JSON types."""
    return {"model_type": config.model_type, **_SHAPES[config.model_type](config)}


def dropouts(config: Any) -> set[float]:
    """Return the dropout probabilities of a configuration; KerasHub has one for all places."""
    names = {
        "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "llama": ("attention_dropout",),
    }[config.model_type]
    found = {getattr(config, name, None) for name in names}
    return {float(p) for p in found if p is not None}


def unlike(config: Any) -> str | None:
    """Return what of a configuration KerasHub's model of this architecture cannot be, as name=value; or None."""
    wanted: dict[str, tuple[Any, ...]] = {
        "bert": {
            "hidden_act": tuple(_ACTIVATIONS), "is_decoder": (False,),
            "add_cross_attention": (False,), "position_embedding_type": ("absolute", None),
        },
        "gpt2": {
            "activation_function": tuple(_ACTIVATIONS), "add_cross_attention": (False,),
            "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "tie_word_embeddings": (True,),
        },
        "llama": {
            "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "pretraining_tp": (1,),
            "head_dim": (None, config.hidden_size // config.num_attention_heads), "attention_dropout": (0.0,),
        },
    }[config.model_type]  # fmt: skip
    for name, allowed in wanted.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            return f"{name}={value!r}"
    rope = getattr(config, "rope_parameters", None) or {}
    return None if rope.get("rope_type", "default") == "default" else f"rope_type={rope['rope_type']!r}"


def _bert(config: Any) -> dict[str, Any]:
    return {
        "backbone": {
            "vocabulary_size": config.vocab_size,
            "num_layers": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "hidden_dim": config.hidden_size,
            "intermediate_dim": config.intermediate_size,
            "max_sequence_length": config.max_position_embeddings,
            "num_segments": config.type_vocab_size,
            "dropout": config.hidden_dropout_prob,
        },
        "classes": config.num_labels,
        "activation": _ACTIVATIONS[config.hidden_act],
        "epsilon": config.layer_norm_eps,
    }


def _gpt2(config: Any) -> dict[str, Any]:
    return {
        "backbone": {
            "vocabulary_size": config.vocab_size,
            "num_layers": config.n_layer,
            "num_heads": config.n_head,
            "hidden_dim": config.n_embd,
            "intermediate_dim": config.n_inner or 4 * config.n_embd,
            "max_sequence_length": config.n_positions,
            "dropout": config.resid_pdrop,
        },
        "activation": _ACTIVATIONS[config.activation_function],
        "epsilon": config.layer_norm_epsilon,
    }


def _llama(config: Any) -> dict[str, Any]:
    return {
        "backbone": {
            "vocabulary_size": config.vocab_size,
            "num_layers": config.num_hidden_layers,
            "num_query_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "hidden_dim": config.hidden_size,
            "intermediate_dim": config.intermediate_size,
            "rope_max_wavelength": config.rope_parameters["rope_theta"],
            "layer_norm_epsilon": config.rms_norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
        },
        "activation": None,
        "epsilon": None,
    }


_SHAPES = {"bert": _bert, "gpt2": _gpt2, "llama": _llama}


def build(shape: dict[str, Any]) -> Any:
    """Build the Keras model, token ids to logits, without drawing any weight.

    Drawing them would cost JAX a compiled program for every shape, ten seconds for a tiny BERT, for values that the
    caller replaces. So the variables have no value yet: the model runs inside a ``StatelessScope`` that gives them all.
    """
    import keras
    import keras_hub

    backbones = {"bert": "BertBackbone", "gpt2": "GPT2Backbone", "llama": "LlamaBackbone"}
    with keras.StatelessScope(initialize_variables=False):
        backbone = getattr(keras_hub.models, backbones[shape["model_type"]])(**shape["backbone"])
        if shape["epsilon"] is not None:
            _settle(backbone, shape["activation"], shape["epsilon"])
        if "classes" not in shape:
            return keras.Model(backbone.input, backbone.token_embedding(backbone.output, reverse=True))
        pooled = keras.layers.Dropout(shape["backbone"]["dropout"])(backbone.output["pooled_output"])
        return keras.Model(backbone.input, keras.layers.Dense(shape["classes"], name="logits")(pooled))


def _settle(backbone: Any, activation: str, epsilon: float) -> None:
    """Set the activation of the feed-forward layers and the epsilon of all layer norms."""
    import keras

    def approximate(x: Any) -> Any:
        return keras.activations.gelu(x, approximate=True)

    act = approximate if activation == "gelu_approximate" else keras.activations.get(activation)
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.LayerNormalization):
            layer.epsilon = epsilon
        elif layer.name == "feedforward_intermediate_dense":
            layer.activation = act
