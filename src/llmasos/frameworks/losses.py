"""The losses of the supported tasks, once more: said in JSON by the run, computed in the framework's process.

They are those of the tasks' own files in the words of ``keras.ops``; ``llmasos parity`` compares them.
"""

from __future__ import annotations

from typing import Any

from ..tasks.base import IGNORED, Task
from ..tasks.text_classification import TextClassificationTask


def described(task: Task) -> dict[str, Any]:
    """Return how a settled task's loss is computed, as JSON types."""
    if not isinstance(task, TextClassificationTask):
        return {"kind": "tokens"}
    weights = task.class_weights
    assert task.labels is not None
    return {
        "kind": "labels" if task.multi_label else "classes",
        "weights": [1.0 if not isinstance(weights, dict) else weights[label] for label in task.labels],
        "smoothing": task.label_smoothing,
    }


def summed(loss: dict[str, Any], logits: Any, targets: Any) -> Any:
    """Return the summed loss of a padded batch.

    Args:
        loss: what ``described`` said.
        logits: (rows, classes), or for tokens (rows, length, vocabulary).
        targets: (rows,) with ``IGNORED`` for rows that only fill up; (rows, labels) of zeros and ones, and then
            ``IGNORED`` all along; or (rows, length).
    """
    from keras import ops

    asked = ops.not_equal(targets, IGNORED)
    if loss["kind"] == "labels":
        # log(1 + e^x) - x is -log sigmoid(x); as torch's BCE-with-logits, with the weight of a present label
        weights = ops.convert_to_tensor(loss["weights"], "float32")
        present = ops.cast(targets, "float32")
        each = weights * present * ops.softplus(-logits) + (1.0 - present) * ops.softplus(logits)
        return ops.sum(ops.where(asked, each, 0.0)) / logits.shape[-1]
    chances = ops.log_softmax(logits, axis=-1)
    wanted = ops.where(asked, targets, 0)
    if loss["kind"] == "tokens":
        each = -ops.squeeze(ops.take_along_axis(chances, wanted[..., None], axis=-1), -1)
        return ops.sum(ops.where(asked, each, 0.0))
    classes = logits.shape[-1]
    shares = (1.0 - loss["smoothing"]) * ops.one_hot(wanted, classes) + loss["smoothing"] / classes
    each = -ops.sum(ops.convert_to_tensor(loss["weights"], "float32") * shares * chances, axis=-1)
    return ops.sum(ops.where(asked, each, 0.0))
