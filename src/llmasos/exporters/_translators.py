"""Encoder-decoder models as two graphs: one reads, once; the other writes a token at a time.

The first is the encoder, and the keys and values that each layer of the decoder makes of what was read. The second
takes these beside its own of the tokens before, so nothing is computed twice, and only embeddings lie in both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..decoders._plain import start_of


class Reading(nn.Module):
    """What is read, as the decoder's layers attend to it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return keys and values, (rows, heads, tokens, width).

        They depend on what was read alone, so of the decoder, which is run for a token here, a graph keeps no more.
        """
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        states = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        out = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=attention_mask,
            decoder_input_ids=input_ids[:, :1], past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            use_cache=True,
        )  # fmt: skip
        layers = out.past_key_values.cross_attention_cache.layers
        found = {f"present.{number}.encoder.key": layer.keys for number, layer in enumerate(layers)}
        return found | {f"present.{number}.encoder.value": layer.values for number, layer in enumerate(layers)}


def writing(model: Any, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """Return the model and what it is given at a step of its writing, where all that was read is in its cache."""
    from transformers import GenerationConfig
    from transformers.exporters.utils import decompose_for_generation

    plainly = GenerationConfig(decoder_start_token_id=start_of(model), pad_token_id=model.config.pad_token_id or 0)
    parts = decompose_for_generation(model, inputs, generation_config=plainly, multi_token_decode=True)
    found: tuple[Any, dict[str, Any]] = parts["decode"]
    return found
