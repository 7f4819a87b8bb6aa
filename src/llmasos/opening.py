"""A model's folder, and all that is opened from it when it is first needed: tokenizer, weights, what runs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from .core import bundle, plugins
from .core.config import ExportConfig, GenerateConfig, PredictConfig, WriteConfig
from .core.errors import BundleError, LLMasOSError, NotFittedError, ParityError, UsageError
from .data import tokenizer as light
from .tasks.base import Row, Task

if TYPE_CHECKING:
    from .engines.base import Engine
    from .generation.generator import Generator
    from .metrics.base import Report
    from .prediction import Cut
    from .serving.expected import Origin
    from .serving.served import Parts
    from .sources.base import Located

_LINEAGE = ("base", "data", "max_length")
_NOT_SAVED = "it was never saved by LLMasOS, so there is nothing to compare its answers with"
_SAVED_WITHOUT = (
    "it was saved without golden rows: by an earlier version, then save it again, or since it takes no text of their "
    "length"
)


class Opened:
    """The inside of an ``LLM``."""

    def __init__(self, located: Located) -> None:
        """Wrap a model folder that a source has found; use ``LLM.from_pretrained``."""
        self.located = located
        self.task: Task | None = None
        self._manifest = bundle.read_manifest(located.path) or {}
        if "task" in self._manifest:
            self.task = bundle.saved_task(self._manifest["task"], located.path)
        elif not self._manifest:
            self.task = bundle.head_task(located.path)
        self._origin = {k: v for k, v in self._manifest.items() if k in _LINEAGE}
        self._report: Report | None = None
        self._metrics: dict[str, float] = dict(self._manifest.get("metrics", {}))
        self._tokenizer: Any = None
        self._model: Any = None
        self._tuned = False
        self._forget()

    @property
    def ref(self) -> str:
        """What the model was asked for as."""
        return self.located.ref

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        if self._tokenizer is None:
            from .loading import load_tokenizer

            self._tokenizer = load_tokenizer(self.located.path)
        return self._tokenizer

    @property
    def model(self) -> Any:
        """The transformers model with the task's head, in float32.

        Raises:
            UsageError: this is an exported model.
        """
        if self._model is None:
            from .loading import load_model

            task = self._fitted()
            self._refuse_artifact()
            self._model = load_model(self.located.path, task, known=task, complete=True, base=self.located.base).model
        return self._model

    def _refuse_artifact(self) -> None:
        if artifact := bundle.artifact_of(self._manifest):
            raise UsageError(f"{self.ref} is a {artifact['target']} model, which answers and is scored, and no more",
                             hint="open the model that it was exported from")  # fmt: skip

    def _fitted(self) -> Task:
        if self.task is None:
            raise NotFittedError(
                f"{self.ref} has no task yet", hint="finetune it first, or open a folder that finetune or save wrote"
            )
        return self.task

    def _purposed(self) -> Self:
        """Return this model with a task: its own, or, of one that was never tuned, what it can do as it is."""
        if self.task is not None:
            return self
        from .loading import purpose_of

        out = copy(self)
        out._forget()
        out._tokenizer = None  # it may get a chat template
        out.task = purpose_of(out.located.path, out.tokenizer)
        return out

    def _forget(self) -> None:
        """Close what runs the model, since the model is not what it was."""
        self._engines: dict[tuple[Any, ...], Engine] = {}
        self._generators: dict[tuple[str, ...], Generator] = {}
        self._encoder: Any = None
        self._light: Any = None
        self._longest: int | None = None

    @property
    def _reader(self) -> Any:
        """What makes tokens of rows: the light tokenizer where the model is computed without transformers."""
        if self._light is None:
            self._light = self._reads_lightly() and light.opened(self.located.path)
            if self._light:
                self._light.model_input_names = tuple(self._manifest["tokenizer"]["light"])
        return self._light or self.tokenizer

    def _engine(self, config: PredictConfig) -> Engine:
        """Return what runs the model: torch, or for an exported model its own runtime, after its golden rows."""
        artifact = bundle.artifact_of(self._manifest)
        if artifact is None:
            from .core import hardware

            hardware.set_threads(config.threads)
        key = config.precision, config.speed, config.device, artifact and config.threads
        if key not in self._engines:
            self._engines = {key: self._exported(config, artifact) if artifact else self._torch(config)}
        return self._engines[key]

    def _exported(self, config: PredictConfig, artifact: Mapping[str, Any]) -> Engine:
        task = bundle.saved_task(self._manifest["task"], self.located.path)  # also where embed asks
        allowed = {"precision": ("auto", artifact["precision"]), "speed": ("auto",), "device": ("auto", "cpu")}
        for name, values in allowed.items():
            if (value := getattr(config, name)) not in values:
                raise UsageError(
                    f"{name}={value}, but {self.ref} is a {artifact['target']} model in {artifact['precision']}",
                    hint=f"leave {name} out, or open the model that it was exported from",
                )
        from .certificate import check_golden
        from .engines._writing import author_of

        folder = self.located.path
        engine: Engine = plugins.load("engines", artifact["engine"])(
            folder, artifact, pad_id=self._reader.pad_token_id or 0, output=task.output, likeliest=task.likeliest,
            threads=config.threads,
        )  # fmt: skip
        asked = author_of(engine) if artifact.get("writes") else engine
        check_golden(folder, asked, task, self._reader, artifact["precision"])
        return engine

    def _untrained(self, task: Task, config: PredictConfig) -> Engine:
        """Return what runs the model as it was before its training."""
        from .sources.base import locate

        base = self._origin.get("base") or {"ref": self.ref}
        try:
            before = type(self)(locate(base["ref"], revision=base.get("revision")))
        except LLMasOSError as error:
            raise BundleError(
                f"its scores compare with the model before its training, which cannot be opened: {error.message}",
                hint=f"bring {base['ref']} back to where it was",
            ) from error
        before.task = task
        return before._engine(config)

    def _torch(self, config: PredictConfig) -> Engine:
        from .core import hardware
        from .engines.torch import TorchEngine

        device, task = hardware.pick_device(config.device), self._fitted()
        precision, _ = hardware.pick_precision(config.precision, device)
        model, proven = self._bare() if config.speed == "auto" else (None, None)
        return TorchEngine(
            (self.model if model is None else model).to(device), self._reader.pad_token_id or 0, output=task.output,
            precision=precision, speed=config.speed, likeliest=task.likeliest, proven=proven,
        )  # fmt: skip

    def _reads_lightly(self) -> bool:
        """Say whether a model may be opened without transformers, whose code takes longer to import than to run."""
        if (
            not self._manifest.get("tokenizer", {}).get("light")
            or self._model is not None
            or "adapter" in self._manifest
        ):
            return False
        if (artifact := bundle.artifact_of(self._manifest)) is not None:
            return not artifact.get("writes")
        return self.task is not None and not self.task.writes() and self.task.output in ("row", "token", "embedding")

    def _bare(self) -> tuple[Any, Any]:
        """Open a model that its golden rows prove, without transformers, which has once computed them.

        Without golden rows, or where they come out otherwise, it is transformers' model (None here).
        """
        if not self._reader or not self._light or self._model is not None:
            return None, None
        from . import golden
        from .architectures import _proof
        from .architectures.base import bare
        from .certificate import check_golden
        from .engines.torch import TorchEngine

        folder, task = self.located.path, self._fitted()
        bundle.check_folder(folder)
        kept = golden.read(folder)
        found = None if kept is None else bare(folder, task.output)
        with suppress(LLMasOSError, AttributeError, RuntimeError):  # also where its configuration leaves out a default
            if kept is not None and found is not None:
                engine = TorchEngine(found[0], self._light.pad_token_id or 0, output=task.output, proven=found[1])
                check_golden(folder, engine, task, self._light, "float32")
                if golden.apart_together(kept, engine, task, self._light) <= _proof.TOLERANCE:
                    return found
        self._light = False
        return None, None

    def _generator(self, config: GenerateConfig) -> Generator:
        from .generation.generator import of_artifact, opened

        if artifact := bundle.artifact_of(self._manifest):
            stepper: Any = self._engine(PredictConfig(precision=config.precision, speed=config.speed,
                                                      device=config.device, threads=config.threads))  # fmt: skip
            if not artifact.get("writes"):
                raise UsageError(f"{self.ref} is a {artifact['target']} model that writes no text",
                                 hint="predict answers with it")  # fmt: skip
            return of_artifact(self.located.path, stepper, self.tokenizer, self._max_length(PredictConfig()))
        if self._model is None and self.task is None:
            from .loading import load_writer

            self._model = load_writer(self.located.path)
        key = (config.precision, config.speed, config.device)
        if key not in self._generators:
            model = self._model if self.task is None else self.model
            self._generators = {key: opened(model, self.tokenizer, self.located.path, config)}
        return self._generators[key]

    def _as_encoder(self, *, normalize: bool) -> Self:
        """Return this model without its head, ready to embed."""
        from .loading import check_pooling, load_config
        from .tasks.sentence_similarity import TextEmbedding

        if self._encoder is None:
            check_pooling(self.located.path)
            if getattr(load_config(self.located.path), "is_encoder_decoder", False):
                raise UsageError(f"{self.ref} is an encoder with a decoder, which gives no vector for a text",
                                 hint="an encoder, such as a BERT or a sentence-transformers model")  # fmt: skip
            exported = bundle.artifact_of(self._manifest)
            if exported and self._fitted().output != "embedding":
                raise UsageError(f"{self.ref} is an exported {self._fitted().tag} model, which makes no vectors",
                                 hint="export a model of sentence-similarity, or one without a task")  # fmt: skip
            encoder = copy(self)
            encoder._engines = {}
            encoder._model = None if self.task is None or exported else self.model.base_model
            self._encoder = encoder
        found: Self = self._encoder
        found.task = TextEmbedding(normalize=normalize)
        return found

    def _written(self, rows: Iterable[Row], options: Mapping[str, Any], cut: Cut | None = None) -> Iterator[Any]:
        """Yield the answers that the model writes to rows; ``options`` go before what the task settles."""
        from .prediction import written

        config, more = self._write_config(options)
        return written(self._generator(config), self._fitted(), rows, config, more, cut=cut)

    def _write_config(self, options: Mapping[str, Any]) -> tuple[WriteConfig, dict[str, Any]]:
        """Return how answers are written, and what the generator is told besides."""
        task = self._fitted()
        for name in () if task.cuts_prompts else ("max_length", "allow_truncated"):
            if options.get(name) is not None:
                raise UsageError(
                    f"{name}={options[name]!r} does nothing: {task.tag} cuts no prompt", hint="leave it out"
                )
        settled = task.generation(self.tokenizer)
        more: dict[str, Any] = {name: settled.pop(name) for name in ("first_token", "start_token") if name in settled}
        return WriteConfig.of({**settled, **options}), more

    def _parts(self, options: Mapping[str, Any]) -> Parts:
        """Open what the server computes with, by the engine that is asked for; see ``conversion.py``."""
        from .conversion import parts_of

        return parts_of(self, options)

    def _computing(self, options: Mapping[str, Any], generator: Generator | None = None) -> Parts:
        """Open what the model's own engine computes with; ``options`` are precision, speed, device and threads.

        ``generator``: what writes, where it is opened already.
        """
        from .loading import writes
        from .serving.served import Parts

        about = {"task": self.task.tag if self.task else None, "ref": self.ref, "metrics": dict(self._metrics)}
        answers = self.task if self.task and self.task.generates else None  # one that goes on with texts answers none
        if answers is None and generator is None and (self._reads_lightly() or not writes(self.located.path)):
            from .tasks.sentence_similarity import TextEmbedding

            config = PredictConfig(**options)
            embeds = TextEmbedding() if self.task is None or self.task.output == "embedding" else None
            model = self if self.task is not None else self._as_encoder(normalize=True)
            engine = model._engine(config)
            return Parts(self._reader, self._max_length(config), self.task, engine, embeds=embeds, about=about,
                         origin=self._as_origin(engine))  # fmt: skip
        settled = self._write_config({}) if answers else None
        generator = generator or self._generator(GenerateConfig(**options))
        return Parts(self.tokenizer, generator.limit, answers, generator=generator, settled=settled, about=about,
                     origin=self._as_origin(generator))  # fmt: skip

    def _as_origin(self, computing: Any) -> Origin:
        """Return what parts are opened from, with the number format of what computes."""
        from .serving.expected import Origin

        artifact = bundle.artifact_of(self._manifest)
        precision = artifact["precision"] if artifact else str(computing.dtype).removeprefix("torch.")
        return Origin(self.located.path, self.task, precision)

    def _compared(self, parts: Parts) -> Parts:
        """Compare the weights, and the answers to golden rows, with what was saved; ``about`` says why it could not.

        Raises:
            BundleError: the weights were changed, or what computes them gives other answers.
        """
        from . import golden
        from .certificate import check_golden

        bundle.verify(self.located.path, ending=".safetensors")
        if parts.about.get("checked"):
            return parts
        kept = golden.read(self.located.path)
        if kept is not None and self.task is not None and bundle.artifact_of(self._manifest) is None:
            if self.task.generates if kept.answers is None else not self.task.writes():
                raise BundleError(f"the golden rows in {self.located.path} are of another task",
                                  hint="copy or save it again")  # fmt: skip
            assert parts.origin is not None
            precision = parts.origin.precision
            if kept.answers is not None and parts.generator:
                asked: Any = parts.generator.author([ids[0] for ids in kept.ids])
            else:
                asked = parts.engine or self._engine(PredictConfig(precision=precision))
                golden.run_together(kept, asked, self.task, self._reader)
            try:
                check_golden(self.located.path, asked, self.task, self._reader, precision)
            except ParityError as wrong:
                raise BundleError(
                    f"{self.ref} does not answer as it did when it was saved: {wrong.message}",
                    hint="copy or save it again; llmasos verify compares all of its files",
                ) from wrong
        why = {} if kept is not None else {"checked_why": _SAVED_WITHOUT if self._manifest else _NOT_SAVED}
        return replace(parts, about={**parts.about, "checked": kept is not None, **why})

    def _max_length(self, config: PredictConfig | ExportConfig) -> int:
        if self._longest is None:
            reader, read = self._reader, light.longest_input
            if not self._light:
                from .loading import longest_input as read
            self._longest = read(self.located.path, reader)
        artifact = bundle.artifact_of(self._manifest) or {}
        limit = min(self._longest, artifact.get("max_length", self._longest))  # of fixed lengths
        if config.max_length is not None and config.max_length > limit:
            raise UsageError(f"max_length={config.max_length}, but this model takes at most {limit} tokens",
                             hint=f"max_length={limit}")  # fmt: skip
        return config.max_length or limit

    def _sized(self, precision: str, max_length: int | None, batch_size: int) -> tuple[str, int, Any]:
        """Return the number format of the weights, tokens of a row, and ``sizing.estimate`` of this model."""
        from .certificate import CERTIFICATE, read
        from .sizing import estimate, shape_of, stored

        folder = self.located.path
        found, weights = stored(folder, self._manifest, precision)
        length = self._max_length(PredictConfig(max_length=max_length)) if max_length else min(
            128, self._max_length(PredictConfig()))  # fmt: skip
        peak = float(read(folder)["peak_bytes"]) if (folder / CERTIFICATE).is_file() else 0.0
        shape = shape_of(folder, self.task)
        return (
            found,
            length,
            lambda device, **more: estimate(
                shape,
                device,
                found,
                length=length,
                batch_size=batch_size,
                weight_bytes=weights,
                peak_bytes=peak,
                **more,
            ),
        )

    def _reached(self, precision: str, length: int, batch_size: int, seconds: float = 2.0) -> float | None:
        """Return the rows a second of so many random tokens that this machine computes, or the tokens that it writes.

        None where it stops writing before that can be told.
        """
        import time

        import numpy as np

        from .data.batching import Batch

        draw = np.random.default_rng(0)
        if self.task is None or self.task.writes():
            config = GenerateConfig()
            generator, found = self._generator(config), []
            prompts = draw.integers(5, len(self.tokenizer), (batch_size, max(1, length - 48))).tolist()
            for count in (4, 4, 48):  # the first also opens; what reading the prompt takes falls out of the difference
                start = time.perf_counter()
                answers = generator.answers(prompts, replace(config, max_new_tokens=count))
                found.append((sum(len(one.tokens) for one in answers), time.perf_counter() - start))
            tokens, spent = (after - before for before, after in zip(found[1], found[2], strict=True))
            return tokens / spent if tokens > 0 and spent > 0 else None
        engine = self._engine(PredictConfig(precision=precision if precision in ("float32", "bfloat16") else "auto"))
        ids = draw.integers(5, len(self.tokenizer), batch_size * length, dtype=np.int32)
        batch = Batch(ids, None, np.full(batch_size, length, np.int32), np.arange(batch_size))
        engine.outputs(batch)
        start, rows = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            engine.outputs(batch)
            rows += batch_size
        return rows / spent
