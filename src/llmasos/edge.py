"""The front door of an exported model where torch and transformers are not: open it, prove it, ask it.

``llmasos-edge``, a distribution of its own, is this module and what stands below it: numpy, tokenizers and a runtime
are all that it imports (docs/decisions/007-edge-is-a-subset.md). Rows, tokens, batches and answers are made by the same
code as in ``LLM.predict``; only the tokenizer is the light one (``data/tokenizer.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import certificate, golden
from .certificate import Tolerance
from .core import bundle, plugins
from .core.errors import BundleError, TruncatedWarning, UsageError, warn
from .data.columns import is_row
from .data.dataset import stream
from .data.files import is_file
from .data.tokenizer import longest_input, opened
from .prediction import Cut, predict
from .tasks.base import Task


class Model:
    """An exported model; use ``Model.open``.

    Attributes:
        folder: where it is.
        task: what it was tuned for.
        tokenizer: its tokenizer.
        engine: what runs it; ``engine.how`` says it in words.
        max_length: the longest text in tokens.

    Example:
        >>> model = Model.open("my-model-edge")
        >>> model.predict("what a lovely day").label
    """

    def __init__(self, folder: Path, task: Task, artifact: Mapping[str, Any], threads: int | None) -> None:
        self.folder, self.task, self._artifact = folder, task, artifact
        self.tokenizer = opened(folder)
        self.max_length = longest_input(folder, self.tokenizer)
        self.engine: Any = plugins.load("engines", artifact["engine"])(
            folder, artifact, pad_id=self.tokenizer.pad_token_id or 0, output=task.output, likeliest=task.likeliest,
            threads=threads,
        )  # fmt: skip
        self.tokenizer.model_input_names = tuple(self.engine.names)  # a graph asks for what its tokenizer gave

    @classmethod
    def open(cls, folder: str | Path, *, threads: int | None = None) -> Model:
        """Open an exported model, and compare its golden rows with what the model gave for them.

        Args:
            folder: the artifact.
            threads: processor threads; one a core if not given.

        Raises:
            BundleError: it is no artifact, or damaged.
            UsageError: what it is for is not done here.
            MissingExtraError: its runtime is not installed.
            ParityError: on this machine it is not the model that was exported.
        """
        folder = Path(folder)
        bundle.check_folder(folder)
        manifest = bundle.read_manifest(folder) or {}
        artifact = bundle.artifact_of(manifest)
        if artifact is None:
            raise BundleError(f"{folder} is no exported model", hint="llmasos export DIR --target edge makes one")
        if artifact.get("writes"):
            raise UsageError(f"{folder} is a model that writes, which is not run here", hint="open it with llmasos")
        model = cls(folder, bundle.saved_task(manifest.get("task"), folder), artifact, threads)
        model._compare()
        return model

    def predict(
        self, data: Any, *, columns: Mapping[str, str] | None = None, batch_size: int = 64,
        max_length: int | None = None, allow_truncated: float = 1.0,
    ) -> Any:  # fmt: skip
        """Answer for one text, a list, an iterator or a file, as ``LLM.predict`` does.

        Args:
            data: a text, or a row as a dict; a list (or table) of texts, pairs or rows; an iterator; a path.
            columns: task field -> column, where names are not found by themselves.
            batch_size: texts computed at once.
            max_length: longest text in tokens; the model's limit if not given.
            allow_truncated: share of the texts that may be cut to it; a ``TruncatedWarning`` says how many were.

        Returns:
            One prediction for a text or row, a list for a list or table, an iterator in order for an iterator
            or a file.

        Raises:
            DataError: a row has no usable text.
            UsageError: ``max_length`` is more than the model takes.
        """
        if max_length is not None and not 8 <= max_length <= self.max_length:
            raise UsageError(f"max_length={max_length}, but this model takes 8 to {self.max_length} tokens",
                             hint=f"max_length={self.max_length}")  # fmt: skip
        single = (isinstance(data, str) and not is_file(data)) or is_row(data, self.task, columns)
        rows = stream([data] if single else data, self.task.fields, columns=columns)
        cut = Cut()
        answers = predict(
            self.engine, self.task, self.tokenizer, rows, max_length=max_length or self.max_length,
            batch_size=batch_size, allow_truncated=allow_truncated, cut=cut,
        )  # fmt: skip

        def told() -> Iterator[Any]:
            yield from answers
            if cut.rows:
                warn(str(cut), TruncatedWarning)

        if single:
            (answer,) = told()
            return answer
        return told() if isinstance(data, Path | str | Iterator) else list(told())

    def verify(self) -> golden.Difference:
        """Check the whole folder: every file as it was written, the certificate, the golden rows.

        Raises:
            BundleError: files are missing or were changed.
            ParityError: its golden rows give something else here.
        """
        bundle.verify(self.folder)
        return self._compare(Tolerance(**certificate.read(self.folder)["tolerance"]))

    def _compare(self, limit: Tolerance | None = None) -> golden.Difference:
        return certificate.check_golden(
            self.folder, self.engine, self.task, self.tokenizer, self._artifact["precision"], limit
        )
