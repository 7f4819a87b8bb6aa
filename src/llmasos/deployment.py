"""What all targets share: a deployment settled from its options, and its files written into a folder.

The folder stays the user's: a file that was edited by hand since it was rendered is shown, not overwritten, and what
holds a secret is not written at all.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from . import __version__, golden
from .certificate import TOLERANCES
from .core import atomic, bundle, hardware, plugins
from .core.config import DeployConfig, PredictConfig, parse_duration, parse_share, parse_size
from .core.environment import home
from .core.errors import (
    BundleError,
    DeploymentError,
    HardwareError,
    LLMasOSError,
    MissingExtraError,
    UsageError,
    did_you_mean,
)
from .core.events import Event, Note
from .instances import SERVER
from .serving.facts import OWN
from .sources.base import Located
from .targets.base import Deployment, State, Target, Validated

RECORD = ".llmasos-render"
"""What was rendered, by its hashes. Without an ending: ``kubectl apply -f`` reads every ``.json`` of a folder."""
LIGHT, PROGRAM = 250_000_000, ("llmasos", "llmasos-edge")
"""Bytes of llmasos-edge before it has opened a model; the two servers, and whether it is that one."""
RELEASE = ("canary", "watch")
"""Options of a new version beside the old one."""
PATIENCE, PAUSE = 1800.0, 10.0
"""Seconds that a deployment may take to get ready, and between two looks."""


class Job(NamedTuple):
    """A target, what is deployed there, and the model's folder."""

    target: Target
    deployment: Deployment
    folder: Path
    share: float | None = None
    """Of the requests that a new version is tried with; None for all at once."""
    watch: float = 600.0
    """Seconds that it is watched."""

    def precision(self, *, there: bool = False) -> str:
        """Return the number format in which the server will compute on this machine, or may compute ``there``."""
        artifact, d = bundle.artifact_of(bundle.read_manifest(self.folder)), self.deployment
        if artifact is not None:
            return str(artifact["precision"])
        if d.engine in (None, OWN):
            if there and d.precision == "auto":
                return "bfloat16"  # that machine may have units that this one lacks
            found, _ = hardware.pick_precision(d.precision, hardware.pick_device())
            return found
        return d.quantize if d.quantize in TOLERANCES else "float32"


@dataclass(frozen=True)
class Rendered:
    """What was written.

    Args:
        target: the target's name.
        folder: where.
        files: their names in it.
        removed: files of an earlier rendering that are not among them any more.
        validated: what the makers' own tool says; None where there is none.
        steps: the commands that put them there.
    """

    target: str
    folder: Path
    files: tuple[str, ...]
    removed: tuple[str, ...]
    validated: Validated | None
    steps: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self) | {"folder": str(self.folder)}


def settled(target: str, folder: Path, options: Mapping[str, Any], *, called: str = "") -> Job:
    """Return what is to be deployed.

    Args:
        target: its name.
        folder: the model's.
        options: of ``DeployConfig``, and the target's own.
        called: the model's name; its folder's if not given.

    Raises:
        UsageError: there is no such target or option, or it does nothing there.
        BundleError: the model's folder is damaged.
    """
    plugin: Target = plugins.load("targets", target)
    shared = {field.name for field in fields(DeployConfig)}
    own = {field.name for field in fields(plugin.settings)}
    takes = (*plugin.takes, *(RELEASE if plugin.canary else ()))
    for name in options:
        if name in RELEASE and not plugin.canary:
            able = ", ".join(one for one in plugins.names("targets") if plugins.load("targets", one).canary)
            raise UsageError(f"{target} has no releases with a share of the requests",
                             hint=f"leave {name} out; these have them: {able}")  # fmt: skip
        if name not in shared | own:
            known = sorted(own | set(takes))
            raise UsageError(f"there is no option {name!r} in {target}",
                             hint=f"{did_you_mean(name, known)}known: {', '.join(known)}")  # fmt: skip
        if name in shared and name not in takes:
            raise UsageError(f"{name} does nothing in {target}", hint=f"leave it out; known: {', '.join(takes)}")
    config = DeployConfig.of({name: value for name, value in options.items() if name in shared})
    settings = plugin.settings.of({name: value for name, value in options.items() if name in own})
    bundle.check_folder(folder)
    bundle.verify(folder)
    light = plugin.light and _is_light(folder)
    for name in ("engine", "quantize", "precision", "gpu") if light else ():
        if name in options:
            raise UsageError(f"{name} does nothing where llmasos-edge serves", hint=f"leave {name} out")
    share = parse_share("canary", config.canary) if config.canary else None
    deployment = _deployment(folder.resolve(), config, settings, called or folder.resolve().name, light)
    return Job(plugin, deployment, folder, share, parse_duration("watch", config.watch))


def _deployment(folder: Path, config: DeployConfig, settings: Any, called: str, light: bool) -> Deployment:
    name = config.name or _name_of(called)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise UsageError(f"name={name!r}", hint="up to 40 of a-z, 0-9 and - between them, with a letter first")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    spare = LIGHT if light else SERVER
    image = config.image or f"{name if config.weights == 'inside' else PROGRAM[light]}:{__version__}"
    return Deployment(
        name=name, model=str(folder), size=size, version=__version__, image=image, replicas=config.replicas,
        max_replicas=config.max_replicas or config.replicas, cpus=config.cpus,
        memory=parse_size("memory", config.memory) if config.memory else spare + 3 * size, gpu=config.gpu,
        port=config.port, region=config.region, instance=config.instance, engine=config.engine,
        quantize=config.quantize, precision=config.precision, keys_secret=config.keys_secret or f"{name}-keys",
        weights=config.weights, extra="" if light else _extra(folder, config), own=settings, light=light,
    )  # fmt: skip


def _is_light(folder: Path) -> bool:
    """Say whether a folder is an artifact that llmasos-edge runs, and brings what to install for it."""
    artifact = bundle.artifact_of(bundle.read_manifest(folder))
    if artifact is None or artifact["target"] not in plugins.names("exporters"):
        return False
    return bool(plugins.load("exporters", artifact["target"]).light)


def _name_of(called: str) -> str:
    """Return a name as clusters and clouds take it."""
    plain = re.sub(r"[^a-z0-9]+", "-", called.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}")[:40].strip("-")


def _extra(folder: Path, config: DeployConfig) -> str:
    """Return the extras of this package that run the model there, with commas between."""
    from .serving.facts import AUTO, ENGINES

    if config.engine not in (None, *(known := (AUTO, *ENGINES))):
        raise UsageError(f"engine={config.engine!r}",
                         hint=f"{did_you_mean(str(config.engine), known)}one of {', '.join(known)}")  # fmt: skip
    artifact = bundle.artifact_of(bundle.read_manifest(folder))
    way = ENGINES.get(config.engine or "")
    target = way.target if way else artifact["target"] if artifact else None
    exporter = plugins.load("exporters", target).extra if target in plugins.names("exporters") else ""
    return ",".join(dict.fromkeys(filter(None, (exporter, way.extra if way else ""))))


def render(job: Job, output: str | Path, *, overwrite: bool = False) -> Rendered:
    """Write a target's files into a folder, each whole or not at all.

    Args:
        job: as ``settled`` gives it.
        output: the folder; what else is in it stays.
        overwrite: replace files that were edited by hand.

    Raises:
        UsageError: a setting is missing, a secret would be written, the makers' own tool refuses the files, or some
            were edited by hand: then nothing is written.
    """
    target, folder = job.target, Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="give the path of a folder")
    files = target.render(job.deployment)
    steps = tuple(target.steps(job.deployment, str(output)))
    _refuse_secrets({**files, "the commands": "\n".join(steps)})
    validated = target.validate(files)
    if validated is not None and validated.problems:
        raise UsageError("\n  ".join([f"{validated.tool} refuses what would be rendered", *validated.problems]),
                         hint="other options")  # fmt: skip
    before = _record(folder)
    edited = [name for name in {**files, **before} if _is_edited(folder, name, files.get(name), before.get(name))]
    if edited and not overwrite:
        shown = "\n".join(_difference(folder / name, files.get(name, "")) for name in edited)
        raise UsageError(f"edited by hand since they were rendered: {', '.join(edited)}\n{shown}",
                         hint="another folder, or --overwrite, which loses the lines with a -")  # fmt: skip
    return Rendered(target.name, folder, tuple(files), _write(folder, files, before), validated, steps)


# -- there --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """A deployment that was put somewhere from here, as this machine remembers it."""

    name: str
    target: str
    region: str | None = None

    @property
    def plugin(self) -> Target:
        """Its target."""
        found: Target = plugins.load("targets", self.target)
        return found


def apply(job: Job, *, patience: float = PATIENCE) -> Generator[Event, None, State]:
    """Put a deployment there, and wait until it answers; what never does is removed again.

    It is remembered before anything is made, so that ``placed`` finds it however this ends.

    Args:
        job: as ``settled`` gives it.
        patience: seconds that it may take to get ready.

    Raises:
        UsageError: the target is not applied from here, or the name is taken.
        RemoteError: the place cannot be reached, or refuses.
        DeploymentError: it did not get ready; nothing of it is left, and what was in service before it still is.
    """
    files = yield from checked(job)
    target, d = job.target, located(job).deployment
    path = _memory(d.name)
    if path.is_file():
        _refuse_elsewhere(placed(d.name), target.name, d.region)
    before = target.there(d.name, d.region)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, asdict(Placed(d.name, target.name, d.region)))
    yield from target.apply(d, files)
    try:
        now = yield from awaited(target, d, patience)
    except DeploymentError as error:
        if before:
            yield Note(f"back to what {d.name} was", "warning")
            try:
                yield from target.apply(d, before)
            except LLMasOSError as again:
                raise DeploymentError(f"{error.message}\nwhat was there before could not be put back: {again.message}",
                                      hint=again.hint) from error  # fmt: skip
            raise DeploymentError(f"{error.message}\nwhat was there before is back", hint=error.hint) from error
        yield Note(f"removing {d.name}", "warning")
        removed(placed(d.name))
        raise
    yield from target.finish(d, files)
    return now


def _refuse_elsewhere(old: Placed, target: str, region: str | None) -> None:
    """Refuse a name whose deployment is elsewhere, or cannot be asked for: it would be forgotten there, and cost on."""
    why = ""
    if old.target == target:
        try:
            if old.region in (None, region) or old.plugin.state(old.name, old.region) is None:
                return
        except LLMasOSError as error:
            why = f", or nobody can tell: {error.message}"
    where = f"{old.target}, {old.region}" if old.region else old.target
    raise UsageError(f"{old.name} is in {where} already{why}",
                     hint=f"llmasos deploy rm {old.name}, or another --name; where nothing of it is left that could be "
                     f"asked, remove {_memory(old.name)}")  # fmt: skip


def located(job: Job) -> Job:
    """Return a job whose deployment knows the part of the place that it goes to."""
    d = job.deployment
    return job._replace(deployment=replace(d, region=job.target.where(d)))


def checked(job: Job) -> Generator[Event, None, dict[str, str]]:
    """Return what a target renders, of a model that still computes what it did when it was made.

    Raises:
        UsageError: the target is not applied from here.
        BundleError: the model is not what it was.
        ParityError: its golden rows give something else.
    """
    target, d = job.target, job.deployment
    if not target.applies:
        steps = "; ".join(target.steps(d, "DIR"))
        raise UsageError(f"what goes to {target.name} is not put there from here yet",
                         hint=f"--render DIR, --rehearse, and then: {steps}")  # fmt: skip
    files = target.render(d)
    _refuse_secrets(files)
    if golden.read(job.folder) is None:
        yield Note(f"{d.name} has no golden rows, so only its files were checked", "warning")
        return files
    from .opening import Opened
    from .verification import verify

    model, config = Opened(Located(job.folder, str(job.folder), None, "")), PredictConfig()
    task = model._fitted()
    try:
        yield from verify(job.folder, task, model.tokenizer, lambda: model.model, model._max_length(config),
                          lambda: model._untrained(task, config))  # fmt: skip
    except (MissingExtraError, HardwareError) as error:  # it is made for another machine than this one
        yield Note(f"not checked here: {error.message}", "warning")
    return files


def awaited(target: Target, d: Deployment, patience: float) -> Generator[Event, None, State]:
    """Wait until a deployment answers.

    Raises:
        DeploymentError: it does not; the end of its log says more.
    """
    until, told = time.monotonic() + patience, ""
    while (now := target.state(d.name, d.region)) is None or not now.ready:
        why = now.why if now is not None else ""
        if now is not None and now.word != told:
            told = now.word
            yield Note(f"{d.name}: {told}")
        if (now is not None and now.failed) or time.monotonic() > until:
            if now is None or not now.failed:
                why = f"not ready within {patience:g} s" + (f"; {why}" if why else "")
            last = "".join(f"\n  {line[:300]}" for line in list(target.logs(d.name, d.region))[-12:])
            raise DeploymentError(f"{d.name} never got ready: {why}\nthe end of its log:{last or ' (nothing)'}",
                                  hint="--rehearse runs the same here")  # fmt: skip
        time.sleep(min(PAUSE, patience / 10))
    return now


def pause() -> float:
    """Return the seconds between two looks."""
    return PAUSE


def placed(name: str) -> Placed:
    """Return a deployment that was put somewhere from this machine.

    Raises:
        UsageError: there is none of that name.
    """
    path = _memory(name)
    known = sorted(one.stem for one in path.parent.glob("*.json"))
    if name not in known:
        raise UsageError(f"no deployment {name!r} was put anywhere from here",
                         hint=f"{did_you_mean(name, known)}known: {', '.join(known) or 'none'}")  # fmt: skip
    try:
        found = Placed(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path} is damaged", hint="remove it, and look with the place's own tools") from error
    return found


def removed(one: Placed) -> list[str]:
    """Remove a deployment there, then its memory here; return what was removed."""
    found = list(one.plugin.remove(one.name, one.region))
    _memory(one.name).unlink(missing_ok=True)
    return found


def _memory(name: str) -> Path:
    return home() / "deployments" / f"{name}.json"


# -- the folder ---------------------------------------------------------------------------------------


def _write(folder: Path, files: Mapping[str, str], before: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Write files; return the names of those that are gone. A crash on the way leaves nothing that looks edited."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {name: [_hash(text)] for name, text in files.items()}
    either = {name: sorted({*before.get(name, []), *hashes.get(name, [])}) for name in {**before, **hashes}}
    atomic.write_text(folder / RECORD, json.dumps(either, indent=1) + "\n")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text, mode=0o777 if text.startswith("#!") else 0o666)
    removed = tuple(sorted(name for name in before if name not in files and (folder / name).exists()))
    for name in removed:
        (folder / name).unlink()
    atomic.write_text(folder / RECORD, json.dumps(hashes, indent=1) + "\n")
    return removed


def _record(folder: Path) -> dict[str, list[str]]:
    """Return the hashes that a file may have, by its name."""
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        found = {str(name): [str(one) for one in hashes] for name, hashes in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"{path} is damaged", hint="remove it, or choose another folder") from error
    if outside := [name for name in found if not bundle.inside(name)]:
        raise BundleError(f"{path} names a file outside of the folder: {outside[0]}", hint="do not trust this folder")
    return found


def _is_edited(folder: Path, name: str, text: str | None, known: list[str] | None) -> bool:
    path = folder / name
    if not path.exists():
        return False
    found = _hash(path.read_bytes().decode("utf-8", "replace"))
    return found not in (known or []) and (text is None or found != _hash(text))


def _difference(path: Path, text: str) -> str:
    old = path.read_bytes().decode("utf-8", "replace").splitlines(keepends=True)
    new = text.splitlines(keepends=True)
    lines = difflib.unified_diff(old, new, str(path), f"{path.name}, as it would be rendered")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# -- secrets ------------------------------------------------------------------------------------------


def _refuse_secrets(files: Mapping[str, str]) -> None:
    """Refuse texts that hold what looks like a secret; the error does not repeat it."""
    for name, text in files.items():
        for kind, pattern in _SECRETS.items():
            if pattern.search(text):
                raise UsageError(f"{name} would hold a secret: {kind}",
                                 hint="leave it out; the place's own secrets bring it")  # fmt: skip


_SECRETS = {
    "a key of this server": re.compile(r"\blm-[A-Za-z0-9_-]{32,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "an access key of AWS": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a token of Hugging Face": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "a token of GitHub": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}"),
    "a key of an API": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a signed address": re.compile(r"[?&](?:sig|X-Amz-Signature|X-Goog-Signature)=[A-Za-z0-9%+/=]{16,}"),
    "a key of an Azure account": re.compile(r"AccountKey=[A-Za-z0-9+/=]{40,}"),
    "a token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}"),
    "a password in an address": re.compile(r"\b[a-z][a-z0-9+]*://[^\s/:@]+:[^\s/@]+@"),
}
