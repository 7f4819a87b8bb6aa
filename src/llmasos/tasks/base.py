"""What a task is: the schema of its rows, their encoding, the loss, the answers and the metrics.

A task knows nothing of files, devices, loops or optimisers, and importing one costs no torch: tensor
code imports torch where it runs. Adding a task is adding a file beside this one with a ``PLUGIN``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from ..data.batching import Batch
    from ..data.encoding import Encoded
    from ..metrics.base import Scorer

Row = Mapping[str, Any]

IGNORED = -100
"""In targets that lie along the tokens: nothing is asked here (torch's own ``ignore_index``)."""


def labels_of(config: Mapping[str, Any]) -> list[str | int]:
    """Return the labels of a published head, in the order of its outputs; one without a name is its number."""
    names = config.get("id2label") or {}
    numbers = range(len(names) or config.get("num_labels") or 2)  # two: what transformers leaves out of the file
    found = [str(names.get(str(number), f"LABEL_{number}")) for number in numbers]
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(found))
    return list(numbers) if unnamed else list(found)


@dataclass(frozen=True)
class Field:
    """One field of a task's rows.

    Args:
        name: the field's name in the task ("text", "label").
        aliases: column names under which data usually carries it, tried in this order.
        kind: "text" (a string), "label" (strings, integers, or lists of these), "number", "json" (anything
            that JSON can say: lists of words, messages, answers with their places; in a CSV file, written as JSON),
            or "content" (a string, which stays one whatever it looks like, or lists and objects).
        answer: whether it is what a model shall learn to give, so that prediction does without it.
        required: whether a row without it is an error. Labels are not required for prediction.
        doc: one line for error messages and ``--help``.
        joins: rows of this field are lines of one running text: they are read as pieces of at least so many
            characters, see ``data/lines.py``; 0 for rows that stand alone.
    """

    name: str
    aliases: tuple[str, ...] = ()
    kind: str = "text"
    required: bool = True
    doc: str = ""
    answer: bool | None = None
    joins: int = 0

    @property
    def is_answer(self) -> bool:
        """Whether prediction does without this field; labels always are answers."""
        return self.kind == "label" if self.answer is None else self.answer


class Problem(NamedTuple):
    """What is wrong with one field of one row. ``drop`` marks rows that may be left out (empty text)."""

    field: str
    found: str
    expected: str
    drop: bool = False


class Encoding(NamedTuple):
    """Rows as token ids: sequences, of which each training example has ``task.group``.

    ``ids``: one array of ids per sequence, special tokens included. ``types``: token type ids of the same
    lengths, or None where the tokenizer has none. ``truncated``: tokens cut from each row. ``targets``: one
    entry or line per example, or one array per sequence; None without labels. ``rows``: for each example the
    place of its row, rising, where a row may give several (windows over a long text) or none; None for one each.
    ``problems``: what only a tokenizer shows to be wrong, by the place of the row, which then gives no example.
    ``context``: what ``decode`` needs besides, and nobody else reads.
    """

    ids: list[NDArray[np.int32]]
    types: list[NDArray[np.uint8]] | None
    truncated: list[int]
    targets: NDArray[Any] | list[NDArray[Any]] | None = None
    rows: list[int] | None = None
    problems: dict[int, Problem] | None = None
    context: Any = None


SCRIPTS = "Ünïcode: 你好，世界。 Привет! こんにちは — naïve café, 3.14 € (A1-b2) 🙂 ..."
"""What tokenizers tell apart in different ways."""

SETTLED: dict[str, Any] = {"settled": True}
"""Metadata of a task's dataclass field that ``fitted`` fills in and nobody sets."""


@dataclass(frozen=True)
class Generation:
    """What a model wrote.

    Args:
        text: without special tokens, and without the stop string that ended it.
        tokens: the ids, in order; an end-of-sequence id is not among them.
        finish_reason: "stop" (the model ended, or a stop string came), "length" (no room or ``max_new_tokens``
            reached), or "schema" (the JSON is complete).
        prompt_tokens: how many tokens the model read first.
        logprobs: of each token, the natural logarithm of its probability under the model itself; None unless
            asked for.
        likeliest: at each place, the likeliest tokens with theirs; None unless asked for.
        cached_tokens: how many of ``prompt_tokens`` a server had read before; None where none are kept.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    prompt_tokens: int
    logprobs: list[float] | None = None
    likeliest: list[list[tuple[int, float]]] | None = None
    cached_tokens: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as JSON types; what a server saved in reading is no part of it."""
        told = asdict(replace(self, cached_tokens=None))
        return {name: value for name, value in told.items() if value is not None}


class Task(ABC):
    """One of the things that a model can be tuned for. Immutable; ``fitted`` returns a new one."""

    tag: ClassVar[str]
    """The Hub's name of the task, as in ``--task``."""
    auto_class: ClassVar[str]
    """The transformers Auto class that gives the model its head."""
    output: ClassVar[str] = "row"
    """What the model gives: "row" (logits of each sequence), "token" (logits of each token), "embedding" (one
    vector a sequence: the mean over its tokens), "vocabulary" (logits over the vocabulary where the targets,
    one for each token, are not ``IGNORED``)."""
    undivided: ClassVar[str | None] = None
    """The field by which rows are set aside for evaluation: those with the same content stay on one side."""
    scores_rows: ClassVar[bool] = False
    """Whether ``score`` reads the rows themselves and not only their targets."""
    needs_reference: ClassVar[bool] = False
    """Whether loss and scores compare with what the model gave before its training (``reference``)."""

    most_unknown: ClassVar[float] = 0.5
    """Share of the tokens that the tokenizer may not know where the user allows no other."""

    @property
    @abstractmethod
    def default_metric(self) -> str:
        """Name of the metric that picks the best model; larger is better, unless ``metrics/base.py`` says lower.

        A class variable, unless it depends on what is settled; so are ``group`` and ``joint``.
        """

    @property
    def likeliest(self) -> int:
        """Of output "vocabulary": how many of the likeliest tokens ``decode`` is given for each place."""
        return 0

    @property
    def group(self) -> int:
        """Sequences of one training example: 2 for pairs that are embedded apart."""
        return 1

    @property
    def joint(self) -> bool:
        """Whether the loss of a row depends on the rows beside it (in-batch negatives)."""
        return False

    generates: ClassVar[bool] = False
    """Whether predictions are texts that the model writes: from ``prompt``, read by ``answer``, while ``encode``
    and ``loss`` train it; ``decode`` is not used then."""

    @classmethod
    def writes(cls) -> bool:
        """Say whether its models write on from a prompt: those that answer so, and language models from any text."""
        return cls.generates or cls.auto_class == "AutoModelForCausalLM"

    cuts_prompts: ClassVar[bool] = False
    """Whether ``prompt`` can leave out the end of a text that is too long."""
    scores_answers: ClassVar[bool] = False
    """Whether an evaluation also writes an answer to every row and feeds the scorer by ``score_answers``."""

    @property
    def answer_metrics(self) -> tuple[str, ...]:
        """The metrics that an evaluation adds then; none of them picks the best model."""
        return ()

    other_data: ClassVar[str] = ""
    """What is read besides tables of rows, in words."""

    @property
    @abstractmethod
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""

    def suited(self, config: Any) -> Self:
        """Return the task as a model of this transformers configuration needs it; most are the same for all."""
        del config
        return self

    @abstractmethod
    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Return this task with everything that it learns from data and tokenizer settled, and notes for the user.

        Raises:
            DataError: the rows contradict the task (one class only, more labels than ``num_labels``).
        """

    @abstractmethod
    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return the first thing that is wrong with a row, or None."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Turn rows into sequences of at most ``max_length`` tokens and, if ``labelled``, their targets."""

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """The metrics by which the best model can be picked."""

    def head_config(self) -> dict[str, Any]:
        """Return the arguments that transformers needs to build the head; none where it is the model's own."""
        return {}

    @abstractmethod
    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss summed over the batch (not its mean: see ``weight``).

        ``outputs`` are what ``output`` says, in the batch's order.
        """

    @abstractmethod
    def weight(self, batch: Batch) -> float:
        """Return what the summed loss of this batch is divided by.

        The trainer divides by the weight of the whole optimiser step, so that splitting a batch
        changes nothing.
        """

    def measured(self, outputs: NDArray[np.float32], batch: Batch) -> tuple[float, float]:
        """Return the summed loss of an evaluated batch and its weight; ``outputs`` as an engine gives them."""
        import torch

        if self.output == "vocabulary":
            return float(outputs[:, 0].sum(dtype=np.float64)), float(len(outputs))
        return float(self.loss(torch.from_numpy(outputs), batch)), self.weight(batch)

    def noised(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return the batch as this step shall see it; most tasks leave it alone."""
        del rng
        return batch

    @abstractmethod
    def scorer(self) -> Scorer:
        """Return an empty scorer, to be fed by ``score``."""

    def score(self, scorer: Scorer, outputs: Any, part: Encoded, rows: Sequence[Row]) -> None:
        """Feed a scorer with some examples of whole rows, in their own order.

        Args:
            scorer: what ``scorer`` returned.
            outputs: (examples, ...) for outputs of rows; a list of arrays for outputs of tokens.
            part: the same examples, encoded.
            rows: their rows, where ``scores_rows`` asks for them, else empty.
        """
        del rows
        assert part.targets is not None
        scorer.add(outputs, part.targets)

    def reference(self, outputs: Any, part: Encoded) -> NDArray[np.float32]:
        """Return what to keep of the untrained model's outputs (as for ``score``), (examples, ...)."""
        raise NotImplementedError(f"{self.tag} compares with no reference")

    def decode(self, outputs: Any, encoding: Encoding, rows: Sequence[Row]) -> list[Any]:
        """Turn outputs (as for ``score``) of encoded rows into typed predictions, one a row.

        A task that ``generates`` has none: its answers are written, see ``answer``.
        """
        raise NotImplementedError(f"{self.tag} writes its answers")

    def extra_files(self, config: Any) -> dict[str, Any]:
        """Return JSON files, name -> content, by which other libraries open the saved model for this task.

        ``config`` is the transformers model's own.
        """
        del config
        return {}

    def prompt(self, row: Row, tokenizer: Any, longest: int | None = None) -> list[int]:
        """Return the tokens from which the model writes its answer to a row (an encoder's input, special ids included).

        Only tasks whose models write have one. Of what is longer than ``longest`` a task that ``cuts_prompts`` leaves
        the end of the text out.
        """
        raise NotImplementedError(f"{type(self).__name__} writes no text")

    def generation(self, tokenizer: Any) -> dict[str, Any]:
        """Return what the task settles about its answers: fields of ``GenerateConfig``, and two tokens.

        ``first_token`` is the id that the answer must begin with, as the language of a multilingual translator;
        ``start_token`` the one from which a decoder starts. What the user asks for goes before them.
        """
        del tokenizer
        return {}

    def answer(self, row: Row, generation: Generation) -> Any:
        """Turn what the model wrote for a row into a typed prediction."""
        del row
        return generation

    @property
    def answers_per_row(self) -> int:
        """How many answers an evaluation writes to each row; ``score_answers`` is called for each round of them."""
        return 1

    def score_answers(self, scorer: Scorer, answers: Sequence[Any], rows: Sequence[Row]) -> None:
        """Feed a scorer with predictions, as ``answer`` gave them, and the labelled rows that they answer."""
        raise NotImplementedError(f"{type(self).__name__} scores no written answers")

    def to_dict(self) -> dict[str, Any]:
        """Return the task's fields as JSON types; ``from_dict`` is its inverse."""
        content = asdict(cast(Any, self))
        return {"tag": self.tag, **{k: list(v) if isinstance(v, tuple) else v for k, v in content.items()}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild a task from what ``to_dict`` gave."""
        known = {field.name for field in fields(cast(Any, cls))} & content.keys()
        return cls(**{k: tuple(v) if isinstance(v := content[k], list) else v for k in known})

    @classmethod
    def of_head(cls, config: Mapping[str, Any]) -> Self | None:
        """Return the task of a published model with this head, if its ``config.json`` says all there is to know."""
        del config
        return None

    @classmethod
    def variants(cls) -> list[Self]:
        """Return the ways of this task that differ in their metrics."""
        return [cls()]

    def golden(self) -> list[dict[str, Any]]:
        """Return rows by which a copy of the model is compared with it, wherever it runs; none of them is a user's.

        A few of the sample, one that is as long as all of it, and one of many scripts.
        """
        _, rows = type(self).sample()
        texts = [f.name for f in self.fields if f.kind == "text" and not f.is_answer and f.name in rows[0]]
        if not texts:
            return rows[:6]
        long = {name: " ".join(str(row[name]) for row in rows) for name in texts}
        return [*rows[:4], {**rows[0], **long}, {**rows[0], **dict.fromkeys(texts, SCRIPTS)}]

    @classmethod
    @abstractmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """Return a task and a few rows that a tiny model learns in seconds."""
