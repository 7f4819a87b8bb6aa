"""GGUF, the one file that llama.cpp reads: weights, sizes, tokenizer and chat template.

Matrices are float16 or blocks of 32 numbers of eight bits (``q8_0``), found here; blocks of 256 numbers of four bits
(``q4_k``, in llama.cpp's usual mixture Q4_K_M) are found by llama.cpp itself. Vectors, positions and token types stay
in float32. ``tokens.json`` beside the file holds a few texts and their tokens: llama.cpp brings its own tokenizers, and
its engine refuses a file of which it would read other tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import bundle, llama
from ..core.errors import UsageError
from ..tasks.base import Task
from ._words import examples, write_words
from .base import Exporter, Source, Written, still

FILE, TOKENS = "model.gguf", "tokens.json"


@dataclass(frozen=True)
class Family:
    """What llama.cpp calls it, the activation that it has there, whether it writes, and whether it turns neighbours."""

    name: str
    activation: str
    decodes: bool = True
    pairs: bool = False


FAMILIES = {
    "llama": Family("llama", "silu", pairs=True),
    "mistral": Family("llama", "silu", pairs=True),
    "qwen2": Family("qwen2", "silu"),
    "qwen3": Family("qwen3", "silu"),
    "gpt2": Family("gpt2", "gelu_new"),
    "bert": Family("bert", "gelu", decodes=False),
}
"""Model type -> its family."""


class GgufFormat(Exporter):
    """GGUF files, run by llama.cpp."""

    target = "gguf"
    engine = "llama-cpp"
    requires = ("gguf",)
    extra = "gguf"
    precisions = {  # noqa: RUF012
        "decoder": ("f16", "q8_0", "q4_k"),
        "encoder": ("f16", "q8_0", "q4_k"),
    }
    outputs = ("row", "embedding", "vocabulary")

    def holds(self, task: type[Task]) -> bool:
        """See ``Exporter.holds``; llama.cpp has no head that fills masks."""
        return task.auto_class != "AutoModelForMaskedLM" and super().holds(task)

    def check(self, task: Task, config: Any, precision: str | None) -> str:
        """Return the precision to write; see ``Exporter.check``."""
        found = super().check(task, config, precision)
        family = FAMILIES.get(config.model_type)
        fits = [name for name, one in FAMILIES.items() if one.decodes == (task.output == "vocabulary")]
        if family is None or config.model_type not in fits:
            raise UsageError(f"gguf holds no {task.tag} model of type {config.model_type}",
                             hint=f"for {task.tag} it holds {', '.join(fits)}")  # fmt: skip
        if wrong := _unlike(config, family):
            raise UsageError(f"llama.cpp computes this model differently: {wrong}", hint="--target onnx")
        llama.load()
        return found

    def elsewhere(self) -> dict[str, str]:
        """Return the version of llama.cpp's Python package; see ``Exporter.elsewhere``."""
        return {"llama-cpp-python": llama.version()}

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write ``model.gguf`` and ``tokens.json``."""
        import gguf

        notes: list[str] = []
        final = folder / FILE
        path = final.with_suffix(".f16") if precision == "q4_k" else final
        kind = gguf.GGMLQuantizationType.Q8_0 if precision == "q8_0" else gguf.GGMLQuantizationType.F16
        with still():
            writer = gguf.GGUFWriter(str(path), FAMILIES[source.model.config.model_type].name)
            _settings(writer, source)
            write_words(writer, source)
            left = []
            for name, values in _tensors(source):
                stored = _stored(name, values, kind)
                if stored != kind and values.ndim > 1 and not _is_table(name):
                    left.append(name)
                writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
            writer.add_file_type(_FILE_TYPES[kind.name])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        if left:
            notes.append(f"{len(left)} matrices are float16: their rows are no multiple of 32 ({left[0]}, ...)")
        if precision == "q4_k":
            llama.quantize(path, final)
            path.unlink()
        bundle.write_json(folder / TOKENS, examples(source))
        return Written([FILE, TOKENS], notes, {"writes": source.task.writes()})


_FILE_TYPES = {"F16": 1, "Q8_0": 7}
"""llama.cpp's numbers for what most of a file is."""


def _unlike(config: Any, family: Family) -> str:
    """Say what of a model llama.cpp does not compute as transformers does; empty if nothing."""
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    if activation != family.activation:
        return f"activation {activation}, where it has {family.activation}"
    rope = getattr(config, "rope_parameters", None) or {}
    if (kind := rope.get("rope_type", "default")) not in ("default", "linear", "llama3"):
        return f"rotary embeddings of type {kind}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "rotary embeddings of a part of each head"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        return f"attention over {window} tokens"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"positions of type {config.position_embedding_type}"
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention", "is_decoder"):
        if getattr(config, name, False):
            return name
    if not getattr(config, "scale_attn_weights", True):
        return "attention that is not scaled"
    return ""


# -- settings -----------------------------------------------------------------------------------------


def _settings(writer: Any, source: Source) -> None:
    """Write the sizes of the model."""
    import gguf

    config = source.model.config
    family = FAMILIES[config.model_type]
    width, heads = config.hidden_size, config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    writer.add_feed_forward_length(inner)
    writer.add_vocab_size(config.vocab_size)
    if family.name == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    elif not family.decodes:
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_causal_attention(False)
        writer.add_token_type_count(config.type_vocab_size)
        pools = gguf.PoolingType.RANK if source.task.output == "row" else gguf.PoolingType.MEAN
        writer.add_pooling_type(pools)
        if source.task.output == "row":
            writer.add_classifier_output_labels([str(config.id2label[i]) for i in range(config.num_labels)])
    else:
        head = getattr(config, "head_dim", None) or width // heads
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(head)
        rope = config.rope_parameters
        writer.add_rope_freq_base(float(rope["rope_theta"]))
        if rope.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))


# -- weights ------------------------------------------------------------------------------------------


def _tensors(source: Source) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each tensor under llama.cpp's name, laid out as llama.cpp reads it.

    Raises:
        UsageError: the model has one that llama.cpp does not know.
    """
    import gguf

    model, config = source.model, source.model.config
    family = FAMILIES[config.model_type]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.name)
    known = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    for name, values in model.state_dict().items():
        short = name.removeprefix(f"{model.base_model_prefix}.") if not family.decodes else name
        if head is not None and name.endswith("lm_head.weight") and head.weight.data_ptr() == table.data_ptr():
            continue  # one matrix, which llama.cpp takes for both
        if short.endswith("position_ids") or (short.startswith("pooler.") and source.task.output == "embedding"):
            continue
        found = _HEADS.get(short) or known.get_name(short, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UsageError(f"llama.cpp has no place for {name}", hint="--target onnx")
        yield found, _laid_out(name, values, config, family)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)


_HEADS = {
    "pooler.dense.weight": "cls.weight",
    "pooler.dense.bias": "cls.bias",
    "classifier.weight": "cls.output.weight",
    "classifier.bias": "cls.output.bias",
}
"""Of a BERT that answers with logits for a row."""


def _laid_out(name: str, values: Any, config: Any, family: Family) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.detach().float().cpu().numpy()
    if family.name == "gpt2" and array.ndim == 2 and ".h." in name:
        array = array.T  # transformers' Conv1D has inputs first
    if family.pairs and ".self_attn." in name and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        # transformers turns the two halves of a head against each other, llama.cpp each pair of neighbours
        halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        array = halves.swapaxes(1, 2).reshape(array.shape)
    return np.ascontiguousarray(array)


def _llama3_factors(config: Any) -> NDArray[np.float32]:
    """Return by what each frequency is divided: nothing where waves are short, ``factor`` where they are long."""
    rope, head = config.rope_parameters, getattr(config, "head_dim", None)
    head = head or config.hidden_size // config.num_attention_heads
    frequencies = rope["rope_theta"] ** (-np.arange(0, head, 2) / head)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # within the first context
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)  # how much of the frequency stays as it is
    return np.asarray(1.0 / ((1.0 - share) / factor + share), dtype=np.float32)


def _is_table(name: str) -> bool:
    return name.startswith(("position_embd", "token_types"))


def _stored(name: str, values: NDArray[np.float32], kind: Any) -> Any:
    """Return what a tensor is kept in."""
    import gguf

    if values.ndim < 2 or _is_table(name):
        return gguf.GGMLQuantizationType.F32
    whole = gguf.GGML_QUANT_SIZES[kind][0]
    return kind if values.shape[-1] % whole == 0 else gguf.GGMLQuantizationType.F16


PLUGIN = GgufFormat()
