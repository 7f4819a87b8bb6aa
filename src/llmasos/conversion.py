"""Other engines for a model that torch runs: it is exported once, proven by the export gate, and kept.

Exports lie in ``exports`` of this project's folder, each under the digests of the model's files, the format, the
precision and the version of this package: of a model that has changed another one is made.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator as Events
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, golden
from .core import bundle, hardware, plugins
from .core.children import Child, Ended, begun
from .core.config import ExportConfig, PredictConfig
from .core.environment import home
from .core.errors import BundleError, DataError, HardwareError, LLMasOSError, ParityError, UsageError
from .core.messages import receive, send
from .core.storage import is_url, outgoing
from .exporters.base import Exporter, Source, kind_of
from .serving import facts
from .serving.facts import Chosen, Way
from .sources.base import Located, locate

if TYPE_CHECKING:
    from .certificate import Certificate
    from .core.events import Event
    from .opening import Opened
    from .serving.served import Parts

_LOG = logging.getLogger(__name__)


def exporting(
    model: Opened, output: str | Path, target: str, config: ExportConfig, *, data: Any = None, calibration: Any = None,
    columns: Mapping[str, str] | None = None, overwrite: bool = False, command: Sequence[str] = (),
) -> Events[Event, None, Certificate]:  # fmt: skip
    """Export a model for what it was tuned for, or can do as it is; see ``LLM.export``, and ``export.py``."""
    from .export import Job, export

    asked = model._purposed()
    task = asked._fitted()
    source = Source(asked.model.cpu().eval(), task, asked.tokenizer, max_length=model._max_length(config))
    before = PredictConfig(precision="float32")
    job = Job(
        source, model.located.path, model._manifest or model._origin, target, lambda: model._untrained(task, before),
        config.quantize, data, calibration, columns, config.accept_drop, config.batch_size, command,
    )  # fmt: skip
    with outgoing(output, overwrite=overwrite) as folder:
        found = yield from export(job, folder, overwrite=overwrite)
    return replace(found, path=output) if is_url(output) else found


def parts_of(model: Opened, options: Mapping[str, Any]) -> Parts:
    """Open what the server computes with.

    Args:
        model: as it is on disk; nothing of it stays but what the parts hold.
        options: precision, speed, device and threads; ``engine``, ``quantize``, ``max_streams`` and
            ``max_cache_tokens`` of ``ServeConfig``.

    Raises:
        UsageError: the engine that is asked for does not run such a model.
        ParityError: what it computes is not what the model does.
        MissingExtraError: its packages are missing.
    """
    wanted, quantize = options.get("engine"), options.get("quantize")
    own = {name: options[name] for name in ("precision", "speed", "device", "threads") if name in options}
    facts.check(wanted, quantize)
    if (artifact := bundle.artifact_of(model._manifest)) is not None:
        return _of_artifact(model, artifact, wanted, quantize, options, own)
    found = Chosen(wanted or facts.OWN, "asked for" if wanted else "nothing else was asked for")
    try:
        if wanted == facts.AUTO:
            device = hardware.pick_device(own.get("device", "auto")).type
            found = facts.chosen(_kind(model), _precision(own, None), device)
        way = facts.ENGINES[found.engine]
        if not way.own:
            parts = _computed(model, way, found.engine, quantize, options, own, again=wanted != facts.AUTO)
            return _told(replace(parts, about={**parts.about, "checked": True}), found)
    except Exception as error:
        if wanted != facts.AUTO:
            raise
        reason = str(error.message if isinstance(error, LLMasOSError) else error).strip().splitlines()
        found = Chosen(facts.OWN, f"{found.engine} was refused: {reason[0] if reason else type(error).__name__}")
        _LOG.warning("%s is served by %s", model.ref, found)
        model._forget()
    return _told(model._computing(own), found)


def _of_artifact(
    model: Opened, artifact: Mapping[str, Any], wanted: str | None, quantize: str | None, options: Mapping[str, Any],
    own: Mapping[str, Any],
) -> Parts:  # fmt: skip
    """Open an export: by the engine of its format, or by another one that reads it."""
    engine = artifact["engine"] if wanted in (None, facts.AUTO) else wanted
    way = facts.ENGINES.get(engine, Way(artifact["target"]))
    if way.target != artifact["target"] or quantize not in (None, artifact["precision"]):
        raise UsageError(
            f"{model.ref} is a {artifact['target']} model in {artifact['precision']}, which "
            f"{f'has no {quantize}' if way.target == artifact['target'] else f'{engine} does not run'}",
            hint="leave it out, or serve the model that it was exported from",
        )
    found = Chosen(engine, "it runs this format" if wanted in (None, facts.AUTO) else "asked for")
    if way.batches:
        return _told(_batched(model, engine, artifact, options), found)
    return _told(model._computing(own), found)


def _told(parts: Parts, found: Chosen) -> Parts:
    about = {**parts.about, "engine": found.engine, "engine_why": str(found)}
    origin = parts.origin and parts.origin._replace(engine=found.engine)
    return replace(parts, about=about, origin=origin)


def _computed(
    model: Opened, way: Way, engine: str, quantize: str | None, options: Mapping[str, Any], own: Mapping[str, Any], *,
    again: bool,
) -> Parts:  # fmt: skip
    """Open a model by an engine that needs more than the model."""
    if model._tuned:
        raise UsageError(f"{engine} needs the model's files, and this one was tuned in memory",
                         hint="save it, and serve the folder")  # fmt: skip
    if not way.runs(kind := _kind(model)):
        raise UsageError(f"{engine} runs no {kind} model, as {model.ref} is", hint="--engine torch runs all")
    exporter = way.exporter
    if exporter is None:
        precision = _precision(own, None)
        return _batched(model._purposed(), engine, {"precision": precision, "writes": True}, options)
    precision = quantize or _precision(own, exporter.precisions[kind])
    folder = exported(model, exporter, precision, again=again)
    opened = type(model)(locate(folder)._replace(ref=model.ref))
    if way.batches:
        artifact = bundle.artifact_of(opened._manifest)
        assert artifact is not None
        return _batched(opened, engine, artifact, options)
    return opened._computing({**own, "precision": "auto"})


def _kind(model: Opened) -> str:
    from .loading import load_config

    return kind_of(model._purposed()._fitted(), load_config(model.located.path))


def _precision(own: Mapping[str, Any], known: Sequence[str] | None) -> str:
    """Return the precision to compute in: what is asked for, else the fastest that keeps the answers."""
    wanted = own.get("precision", "auto")
    picked = hardware.pick_precision(wanted, hardware.pick_device("cpu"))[0]
    if known is None or picked in known or wanted != "auto":
        return picked
    return next((one for one in ("float32", "f16") if one in known), known[0])


def exported(model: Opened, exporter: Exporter, precision: str, *, again: bool = True) -> Path:
    """Return the folder of a model's export, which is written and proven if it is not there yet.

    Args:
        model: the model.
        exporter, precision: the format.
        again: whether to try once more what was refused before.

    Raises:
        ParityError: it is not the same model.
        UsageError: the format holds no such model, or rows are needed to compare it on.
        BundleError: it cannot be written.
    """
    folder = home() / "exports" / f"{exporter.target}-{precision}-{_key(model, exporter, precision)}"
    refused = folder.with_name(f"{folder.name}.txt")
    if folder.is_dir():
        return folder
    if refused.is_file() and not again:
        raise ParityError(refused.read_text(encoding="utf-8"), hint=f"--engine {exporter.engine} tries again")
    _LOG.info("%s is exported to %s in %s", model.ref, exporter.target, precision)
    try:
        _apart(model, exporter, precision, folder)
    except LLMasOSError as error:
        if folder.is_dir():  # another server was faster
            return folder
        if isinstance(error, ParityError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            refused.write_text(error.message, encoding="utf-8")
        raise
    return folder


def _apart(model: Opened, exporter: Exporter, precision: str, folder: Path) -> None:
    """Export in a process of its own: it takes the memory of several models, and torch traces for all threads alike."""
    place = [None if one is None else str(one) for one in model.located]
    child = Child(__name__, [], {})
    try:
        said = child.ask({"place": place, "target": exporter.target, "precision": precision, "output": str(folder)})
    except Ended as ended:
        raise BundleError(f"the export of {model.ref} to {exporter.target} died: {ended}",
                          hint="serve it with --engine torch") from ended  # fmt: skip
    finally:
        child.close()
    if wrong := said.content.get("error"):
        kinds = {kind.__name__: kind for kind in (DataError, HardwareError, ParityError, UsageError)}
        raise kinds.get(said.content["kind"], BundleError)(wrong, hint=said.content["hint"])


def main() -> None:
    """Export what a message asks for, and answer it."""
    source, answers = begun()
    if (message := receive(source)) is None:
        return
    from .opening import Opened

    asked = message.content
    path, ref, revision, name, base = asked["place"]
    model = Opened(Located(Path(path), ref, revision, name, base))
    try:
        for _ in exporting(model, asked["output"], asked["target"], ExportConfig(quantize=asked["precision"])):
            pass
    except LLMasOSError as error:
        send(answers, {"error": str(error).partition("\nhint: ")[0], "hint": error.hint, "kind": type(error).__name__})
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        wrong = f"{ref} cannot be exported to {asked['target']}: {reason}"
        send(answers, {"error": wrong, "hint": "serve it with --engine torch", "kind": ""})
    else:
        send(answers, {})


def _key(model: Opened, exporter: Exporter, precision: str) -> str:
    """Return what an export is known by: the model's files, the format and this version."""
    said = [__version__, exporter.target, precision, str(model.located.base)]
    folder = model.located.path
    said += [f"{path.name} {bundle.digest(path)}" for path in sorted(folder.iterdir()) if path.is_file()]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def _batched(model: Opened, engine: str, artifact: Mapping[str, Any], options: Mapping[str, Any]) -> Parts:
    """Open a model by an engine that batches by itself, after golden rows, written side by side."""
    from .generation.generator import of_artifact

    task, folder, limit = model._fitted(), model.located.path, model._max_length(PredictConfig())
    kept = golden.read(folder) or golden.make(model.model, task, model.tokenizer, limit)
    batcher = plugins.load("engines", engine)(
        folder,
        artifact,
        threads=options.get("threads"),
        rows=options.get("max_streams", 32),
        tokens=options.get("max_cache_tokens", 1 << 16),
    )
    try:
        golden.check_together(kept, batcher, task, model.tokenizer)
        parts = model._computing(options, of_artifact(folder, batcher, model.tokenizer, limit))
        assert parts.origin is not None
        return replace(parts, origin=parts.origin._replace(precision=artifact["precision"]))
    except BaseException:
        batcher.close()
        raise


if __name__ == "__main__":
    main()
