"""Text classification: one label of two or many, several labels at once, one text or a pair.

The mapping from labels to class numbers is settled once, from the data or from the user, and travels
with the model. Losses are those of the literature: softmax cross entropy (with class weights and
label smoothing as in Szegedy et al. 2016, section 7) and, for several labels at once, binary cross
entropy on each label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, UsageError, did_you_mean, shown
from .base import Encoding, Field, Problem, Row, Task, labels_of

if TYPE_CHECKING:
    import torch

    from ..data.batching import Batch
    from ..metrics.base import Scorer

Label = str | int


@dataclass(frozen=True)
class Classification:
    """The answer for one text: the most likely label, its probability, and that of every label."""

    label: Label
    score: float
    scores: dict[Label, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class MultiLabelClassification:
    """The answer for one text with several labels: those above the threshold, and all probabilities.

    ``label`` and ``score`` are the most likely label and its probability, above the threshold or not.
    """

    labels: tuple[Label, ...]
    label: Label
    score: float
    scores: dict[Label, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON types."""
        return {**asdict(self), "labels": list(self.labels)}


@dataclass(frozen=True)
class TextClassificationTask(Task):
    """Put texts into classes.

    Args:
        num_labels: how many classes there are; None infers it from the data.
        labels: the class names (strings or integers), in the order of the model's outputs; None
            infers them from the data, sorted.
        multi_label: a text may carry several labels, or none.
        class_weights: "balanced" weighs each class by the inverse of its frequency in the training
            data (with ``multi_label``, the presence of a label by the rows without it for each with it); a
            mapping from label to weight sets them; None weighs all alike.
        label_smoothing: share of the target probability that is spread over all classes, 0 to 1.
        threshold: the probability from which a label counts, with ``multi_label`` only.
        pairs: every row has a second text; settled by the training data, so that a model for pairs
            never answers about a first text alone.

    Example:
        >>> TextClassificationTask(labels=["bug", "question"]).num_labels
        2
    """

    tag: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    default_metric: ClassVar[str] = "accuracy"

    num_labels: int | None = None
    labels: Sequence[Label] | None = None
    multi_label: bool = False
    class_weights: str | Mapping[Label, float] | None = None
    label_smoothing: float = 0.0
    threshold: float = 0.5
    pairs: bool = False

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
            if len({str(label) for label in self.labels}) != len(self.labels):  # 1 and "1" are one name on disk
                raise UsageError(f"labels holds one name twice: {list(self.labels)}", hint="give each once")
            if self.num_labels not in (None, len(self.labels)):
                raise UsageError(
                    f"num_labels={self.num_labels}, but labels names {len(self.labels)}",
                    hint="leave num_labels out",
                )
            object.__setattr__(self, "num_labels", len(self.labels))
        if self.num_labels is not None and self.num_labels < (1 if self.multi_label else 2):
            raise UsageError(
                f"num_labels={self.num_labels}: a classifier needs at least two classes",
                hint="num_labels=2 for yes and no",
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UsageError(f"label_smoothing={self.label_smoothing}", hint="a share from 0 to below 1")
        if self.multi_label and self.label_smoothing:
            raise UsageError("label_smoothing does not apply to multi_label", hint="leave one of them out")
        if not 0.0 < self.threshold < 1.0:
            raise UsageError(f"threshold={self.threshold}", hint="a probability between 0 and 1")
        if isinstance(self.class_weights, str) and self.class_weights != "balanced":
            raise UsageError(f"class_weights={self.class_weights!r}", hint='"balanced" or {label: weight}')

    @classmethod
    def of_head(cls, config: Mapping[str, Any]) -> Self | None:
        """Return a classifier by the names of its classes; none for a head of one number."""
        labels = labels_of(config)
        kind = config.get("problem_type")
        if kind == "regression" or len(labels) < 2:
            return None
        return cls(labels=labels, multi_label=kind == "multi_label_classification")

    # -- rows ---------------------------------------------------------------------------------------

    @property
    def fields(self) -> tuple[Field, ...]:
        """A text, for pairs a second one, and the label."""
        return (
            Field(
                "text",
                ("text", "sentence", "content", "message", "review", "utterance", "body", "query",
                 "sentence1", "text1", "text_a", "premise", "question1", "question", "input"),
                doc="the text to classify",
            ),
            Field(
                "text_pair",
                ("text_pair", "sentence2", "text2", "text_b", "hypothesis", "question2"),
                required=self.pairs,
                doc="the second text of a pair",
            ),
            Field(
                "label",
                ("label", "labels", "intent", "category", "class", "sentiment", "target", "topic"),
                kind="label",
                doc="a list of labels" if self.multi_label else "the label, a string or an integer",
            ),
        )  # fmt: skip

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""
        for name in ("text", "text_pair"):
            text = row.get(name)
            if text is None and name == "text_pair" and name not in row:
                continue
            if not isinstance(text, str):
                return Problem(name, shown(text), "a string")
            if not text.strip():
                return Problem(name, "an empty text", "some text", drop=True)
        return self._label_problem(row.get("label")) if labelled else None

    def _label_problem(self, label: Any) -> Problem | None:
        if self.multi_label:
            if not isinstance(label, list | tuple):
                return Problem("label", shown(label), "a list of labels")
            return next((p for p in map(self._one_label_problem, label) if p), None)
        return self._one_label_problem(label)

    def _one_label_problem(self, label: Any) -> Problem | None:
        if not isinstance(label, str | int) or label == "":
            return Problem("label", shown(label), "a string or an integer")
        if self.labels is not None and label not in self._index:
            hint = did_you_mean(str(label), map(str, self.labels)).strip()
            known = ", ".join(map(str, self.labels[:12])) + (", ..." if len(self.labels) > 12 else "")
            return Problem("label", repr(label), f"one of {known}" + (f" ({hint})" if hint else ""))
        return None

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Settle the labels and the class weights from the rows, checking them against the task."""
        del tokenizer
        counts: Counter[Label] = Counter()
        pairs, total = self.pairs, 0
        for row in rows:
            total += 1
            pairs = pairs or "text_pair" in row
            label = row["label"]
            counts.update(label if self.multi_label else (label,))
        notes: list[str] = []
        labels = self.labels or self._inferred(counts, notes)
        missing = [label for label in labels if not counts[label]]
        if missing:
            notes.append(f"no training row has the label {', '.join(map(str, missing))}")
        if not self.multi_label and len(labels) - len(missing) < 2:
            only = next(iter(counts), None)
            raise DataError(
                f"every row has the same label: {only!r}",
                hint="a classifier needs rows of at least two classes",
            )
        task = replace(self, labels=labels, num_labels=len(labels), pairs=pairs)
        return replace(task, class_weights=task._weights(counts, total)), notes

    def _inferred(self, counts: Counter[Label], notes: list[str]) -> tuple[Label, ...]:
        found = sorted(counts, key=lambda label: (isinstance(label, str), label))
        if len({type(label) for label in found}) > 1:
            raise DataError(
                f"labels mix strings and integers: {', '.join(map(repr, found[:10]))}",
                hint="write them all as strings or all as integers",
            )
        if self.num_labels is None:
            shown = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
            notes.append(f"{len(found)} labels found in the data: {shown}")
            return tuple(found)
        if len(found) < self.num_labels and all(
            isinstance(label, int) and 0 <= label < self.num_labels for label in found
        ):
            return tuple(range(self.num_labels))
        if len(found) != self.num_labels:
            raise DataError(
                f"num_labels={self.num_labels}, but the data has {len(found)} labels: "
                + ", ".join(map(str, found[:10]))
                + (", ..." if len(found) > 10 else ""),
                hint=f"num_labels={len(found)}, or labels=[...] with all names",
            )
        return tuple(found)

    def _weights(self, counts: Counter[Label], rows: int) -> dict[Label, float] | None:
        if self.class_weights is None:
            return None
        assert self.labels is not None
        if self.class_weights == "balanced":
            # several labels: the rows without a label for each with it; else scikit-learn's "balanced"
            without = {k: rows - counts[k] if self.multi_label else rows / len(self.labels) for k in self.labels}
            return {k: without[k] / counts[k] if counts[k] and without[k] else 1.0 for k in self.labels}
        assert isinstance(self.class_weights, Mapping)
        unknown = [k for k in self.class_weights if k not in self.labels]
        if unknown:
            raise UsageError(f"class_weights names an unknown label: {unknown[0]!r}",
                             hint=f"known: {', '.join(map(str, self.labels))}")  # fmt: skip
        return {k: float(self.class_weights.get(k, 1.0)) for k in self.labels}

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Tokenise texts or pairs; of a pair, the longer text is cut first."""
        first = [row["text"] for row in rows]
        second = [row["text_pair"] for row in rows] if rows and "text_pair" in rows[0] else None
        full = tokenizer(first, second, add_special_tokens=True, truncation=False, verbose=False)
        ids: list[list[int]] = full["input_ids"]
        types: list[list[int]] | None = full.get("token_type_ids") if second else None
        truncated = [max(0, len(row) - max_length) for row in ids]
        long = [i for i, cut in enumerate(truncated) if cut]
        if long:
            cut = tokenizer(
                [first[i] for i in long],
                [second[i] for i in long] if second else None,
                truncation="longest_first",
                max_length=max_length,
            )
            for j, i in enumerate(long):
                ids[i] = cut["input_ids"][j]
                if types is not None:
                    types[i] = cut["token_type_ids"][j]
        return Encoding(
            [np.asarray(row, dtype=np.int32) for row in ids],
            None if types is None else [np.asarray(row, dtype=np.uint8) for row in types],
            truncated,
            self._targets(rows) if labelled else None,
        )

    # -- numbers ------------------------------------------------------------------------------------

    def _targets(self, rows: Sequence[Row]) -> NDArray[Any]:
        """Class numbers, (rows,), or with ``multi_label`` zeros and ones, (rows, labels)."""
        index = self._index
        if not self.multi_label:
            return np.asarray([index[row["label"]] for row in rows], dtype=np.int64)
        out = np.zeros((len(rows), len(index)), dtype=np.float32)
        for i, row in enumerate(rows):
            for label in row["label"]:
                out[i, index[label]] = 1.0
        return out

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Accuracy, the averages of precision, recall and F1, and for one label the Matthews correlation."""
        averages = (
            f"{name}_{kind}" for name in ("precision", "recall", "f1") for kind in ("macro", "micro", "weighted")
        )
        return ("accuracy", *averages, *(() if self.multi_label else ("mcc",)))

    def head_config(self) -> dict[str, Any]:
        """Labels and problem type, under transformers' own names."""
        return {
            "num_labels": len(self._index),
            "id2label": {i: str(label) for label, i in self._index.items()},
            "label2id": {str(label): i for label, i in self._index.items()},
            "problem_type": "multi_label_classification" if self.multi_label else "single_label_classification",
        }  # fmt: skip

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the summed loss. outputs: logits, (rows, labels)."""
        from torch.nn import functional

        logits = outputs if outputs.dtype.itemsize >= 4 else outputs.float()
        targets = batch.target_tensor(logits.device)
        weights = self._weight_array
        tensor = None if weights is None else logits.new_tensor(weights)
        if self.multi_label:
            each = functional.binary_cross_entropy_with_logits(
                logits, targets.to(logits.dtype), pos_weight=tensor, reduction="sum"
            )
            return each / logits.shape[1]
        return functional.cross_entropy(
            logits, targets, weight=tensor, label_smoothing=self.label_smoothing, reduction="sum"
        )

    def weight(self, batch: Batch) -> float:
        """The number of rows; with class weights, the sum of the rows' weights."""
        weights = self._weight_array
        if weights is None or self.multi_label:
            return float(len(batch))
        return float(np.asarray(weights)[batch.targets].sum())

    def scorer(self) -> Scorer:
        """Return an empty scorer for classes or for several labels at once."""
        from ..metrics.classification import ClassificationScorer, MultiLabelScorer

        names = [str(label) for label in self._index]
        return MultiLabelScorer(names, self.threshold) if self.multi_label else ClassificationScorer(names)

    def decode(self, outputs: Any, encoding: Encoding, rows: Sequence[Row]) -> list[Any]:
        """Turn logits, (rows, labels), into predictions with probabilities."""
        del encoding, rows
        labels = list(self._index)
        logits = np.asarray(outputs, dtype=np.float64)
        if self.multi_label:
            return [self._several(labels, row) for row in np.exp(-np.logaddexp(0.0, -logits))]
        power = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = power / power.sum(axis=1, keepdims=True)
        best = logits.argmax(axis=1)
        return [
            Classification(labels[b], float(row[b]), dict(zip(labels, row.tolist(), strict=True)))
            for b, row in zip(best, probabilities, strict=True)
        ]

    def _several(self, labels: list[Label], row: NDArray[np.float64]) -> MultiLabelClassification:
        best = int(row.argmax())
        chosen = tuple(label for label, p in zip(labels, row, strict=True) if p >= self.threshold)
        scores = dict(zip(labels, row.tolist(), strict=True))
        return MultiLabelClassification(chosen, labels[best], float(row[best]), scores)

    # -- storage ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the task as JSON types, label types kept."""
        weights = self.class_weights
        return {
            "tag": self.tag,
            "num_labels": self.num_labels,
            "labels": None if self.labels is None else list(self.labels),
            "multi_label": self.multi_label,
            "label_smoothing": self.label_smoothing,
            "threshold": self.threshold,
            "pairs": self.pairs,
            "class_weights": [[*pair] for pair in weights.items()] if isinstance(weights, Mapping) else weights,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild a task from what ``to_dict`` gave."""
        names = ("num_labels", "labels", "multi_label", "label_smoothing", "threshold", "pairs")
        known = {name: content[name] for name in names if name in content}
        weights = content.get("class_weights")  # pairs, since JSON's keys would all be strings
        return cls(**known, class_weights=dict(weights) if isinstance(weights, list) else weights)

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Two classes that differ in one word."""
        good = [{"text": f"a good day number {i}", "label": "praise"} for i in range(12)]
        bad = [{"text": f"a bad day number {i}", "label": "complaint"} for i in range(12)]
        return cls(), [row for pair in zip(good, bad, strict=True) for row in pair]

    def golden(self) -> list[dict[str, Any]]:
        """Return rows for comparisons; see ``Task.golden``."""
        rows = super().golden()
        return [{**row, "text_pair": rows[-1 - i]["text"]} for i, row in enumerate(rows)] if self.pairs else rows

    @property
    def _index(self) -> dict[Label, int]:
        if self.labels is None:
            raise UsageError("the labels are not settled yet", hint="pass labels=[...], or fit the task on data first")
        return {label: i for i, label in enumerate(self.labels)}

    @property
    def _weight_array(self) -> list[float] | None:
        if not isinstance(self.class_weights, Mapping):
            return None
        return [self.class_weights[label] for label in self._index]


PLUGIN = TextClassificationTask
