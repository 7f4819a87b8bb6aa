"""What a target is: a place that a model is deployed to, as files, and what that place asks of the server.

A file beside this one is one place. Its files are a function of a ``Deployment`` alone: no clock, no machine, no
network, so the same deployment is always the same text. What the place does with the server it starts is data, a
``Contract``, which ``rehearsal.py`` runs against a real process before any money is spent. What is rendered names the
command line of that process; nothing else here knows the server.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

from ..core.config import Config
from ..core.errors import RemoteError, UsageError
from ..core.events import Event

SERVER = ("cpus", "engine", "quantize", "precision")
"""Options that change the server's command line."""


@dataclass(frozen=True)
class Deployment:
    """A model on its way to a place; the options are those of ``DeployConfig``, settled.

    Args:
        name: what it is called there.
        model: its folder on this machine.
        size: bytes of its files.
        version: of this package.
        extra: the extra of this package that the server needs besides ``serve``; empty for none.
        own: the target's own settings.
        light: whether it is an artifact for ``llmasos-edge``, which serves it there without torch.
    """

    name: str
    model: str
    size: int
    version: str
    image: str
    replicas: int
    max_replicas: int
    cpus: float
    memory: int
    gpu: int
    port: int
    region: str | None
    instance: str | None
    engine: str | None
    quantize: str | None
    precision: str
    keys_secret: str
    weights: str
    extra: str
    own: Any
    light: bool = False

    @property
    def inside(self) -> bool:
        """Whether the image holds the model."""
        return self.weights == "inside"

    @property
    def package(self) -> str:
        """What pip installs."""
        if self.light:
            return f"llmasos-edge=={self.version}"
        return f"llmasos[{','.join(filter(None, ('serve', self.extra)))}]=={self.version}"

    def needs(self, option: str, value: Any, example: str) -> str:
        """Return a value without which nothing can be rendered.

        Raises:
            UsageError: it is not given.
        """
        if not value:
            raise UsageError(f"{option} is not given", hint=f"--set {option}={example}")
        return str(value)


@dataclass(frozen=True)
class Training:
    """A training on its way to a place.

    Args:
        name: what it is called there.
        words: its command line, after ``llmasos``; what it names of ``mounts`` it names by the paths there.
        mounts: files and folders of this machine, by their paths there.
        version: of this package.
        extras: of this package that it needs there.
        own: the target's own settings.
    """

    name: str
    words: tuple[str, ...]
    mounts: Mapping[str, str]
    version: str
    extras: tuple[str, ...]
    own: Any


@dataclass(frozen=True)
class Probe:
    """A path that the place asks by itself.

    Args:
        path: answered with 200 when all is well.
        seconds: that an answer may take.
        within: seconds from the start until it must be well.
    """

    path: str
    seconds: float
    within: float


@dataclass(frozen=True)
class Ask:
    """How rows reach the model there, and answers come back.

    Args:
        path: where they are asked.
        seconds: that an answer may take.
        body: makes a request of rows and options.
        read: finds the answers in a response, one for each row.
    """

    path: str
    seconds: float
    body: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], Any]
    read: Callable[[Any], list[Any]]


class Copies(NamedTuple):
    """Processes that do the same, on machines.

    Args:
        many: how many.
        called: how their names begin.
        machine: the program that each machine runs them below, the first machine's with ``--head``; empty for none.
        again: seconds until one that died is replaced.
    """

    many: int
    called: str
    again: float
    machine: str = ""


@dataclass(frozen=True)
class Contract:
    """What a place does with the server, from its start to its end.

    Args:
        words: the command line that it starts, after ``llmasos``.
        model: where it has put the model.
        port: where it looks for the server.
        ready: asked until it is well, and before requests are sent.
        live: the server is killed where it is not well.
        ask: how rows reach it.
        grace: seconds from SIGTERM to SIGKILL.
        pause: seconds between the last new request and SIGTERM.
        accepts: seconds in which a connection must be accepted.
        environment: variables that it sets.
        here: variables by which the server can be told, elsewhere than there, other places for what ``environment``
            and ``words`` do not name.
        archive: the file that the model comes in, unpacked there; None where it is a folder.
        keys: where the keys lie; None where the place itself checks who asks.
        closed: paths that nobody may reach.
        writable: the only folders that can be written; None where all can.
        module: what is run with the words.
        files: texts that the words name, by their paths.
        copies: what runs side by side there; one is killed under load, then a machine.
        root: a folder of this machine that is the whole disk of the server, which is its program ``module``: an
            image's own; None where the server is this package.
        rolls: whether the place puts another server in its place while it is asked.
        handed: whether the place listens itself, and hands over its socket to one server after the other.
    """

    words: tuple[str, ...]
    model: str
    port: int
    ready: Probe
    live: Probe
    ask: Ask
    grace: float
    pause: float = 0.0
    accepts: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    here: Mapping[str, str] = field(default_factory=dict)
    archive: str | None = None
    keys: str | None = None
    closed: tuple[str, ...] = ()
    writable: tuple[str, ...] | None = None
    module: str = "llmasos"
    files: Mapping[str, str] = field(default_factory=dict)
    copies: Copies | None = None
    root: str | None = None
    rolls: bool = False
    handed: bool = False


@dataclass(frozen=True)
class Validated:
    """What a tool of the place's own makers says of rendered files.

    Args:
        tool: its name and version.
        problems: what is wrong, a line each.
        missing: how to get the tool, where it is not here and nothing was checked.
    """

    tool: str
    problems: tuple[str, ...] = ()
    missing: str | None = None


@dataclass(frozen=True)
class State:
    """How a deployment is, there.

    Args:
        word: in the place's own word.
        ready: whether it answers.
        failed: whether it never will.
        why: what the place says of it.
        address: where it is asked, as the place writes it.
    """

    word: str
    ready: bool = False
    failed: bool = False
    why: str = ""
    address: str = ""


class Counted(NamedTuple):
    """Requests that a version was sent, and how many of them it failed to answer."""

    requests: int
    errors: int


class Health(NamedTuple):
    """How the two versions of a release have answered since it began."""

    old: Counted
    new: Counted


class Target(ABC):
    """One place.

    One that ``applies`` puts there by itself what it renders, with the place's own library and its credentials. What it
    does again does no harm: it was perhaps broken off.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    """What it is, in a line."""
    takes: ClassVar[tuple[str, ...]]
    """The options of ``DeployConfig`` that say something there; all others are refused."""
    settings: ClassVar[type[Config]] = Config
    """Its own options."""

    @abstractmethod
    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return its files: text by the path inside the folder.

        Raises:
            UsageError: a setting is missing that the files cannot be without.
        """

    @abstractmethod
    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Return the commands by which what lies in a folder is put there, by the place's own tools."""

    light: ClassVar[bool] = False
    """Whether an artifact for ``llmasos-edge`` is served by that there."""
    trains: ClassVar[type[Config] | None] = None
    """Its options of a machine to train on; None where nothing is trained there."""

    def training(self, training: Training) -> dict[str, str]:
        """Return the files of a training there."""
        del training
        raise self._refusal("finetune --on")

    variable: ClassVar[str] = ""
    """What names the environment of its own that its program lies in."""

    def launch(self, training: Training, folder: str) -> list[str]:
        """Return the command that starts a training whose files lie in a folder."""
        del training, folder
        raise self._refusal("finetune --on")

    hands: ClassVar[str] = ""
    """The file beside this one that puts things there with the place's own library: ``put`` and, by their own names,
    what the methods below do."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Packages by which it does."""
    extra: ClassVar[str] = ""
    """The extra that brings them."""

    def where(self, deployment: Deployment) -> str | None:
        """Return the part of the place that a deployment goes to, by which it is found again, however it is called."""
        return deployment.region

    def there(self, name: str, region: str | None) -> Mapping[str, str]:
        """Return the files of what ``apply`` lets stand until the next is ready; none where it does not, or nothing is.

        When the next never gets ready, they are applied again.
        """
        found = getattr(self._of(self.hands, "apply"), "there", None)
        return found(name, region) if found else {}

    def apply(self, deployment: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
        """Put there what was rendered; it need not be ready yet.

        Raises:
            UsageError: the name is taken, or something of it cannot be had there.
            RemoteError: the place cannot be reached, or refuses.
        """
        return self._of(self.hands, "apply").put(deployment, files)  # type: ignore[no-any-return]

    def finish(self, deployment: Deployment, files: Mapping[str, str]) -> Iterator[Event]:
        """Put there what can only be put there when it is ready."""
        del deployment, files
        yield from ()

    def state(self, name: str, region: str | None) -> State | None:
        """Return how a deployment is; None where there is none of that name."""
        return self._of(self.hands, "status").state(name, region)  # type: ignore[no-any-return]

    def logs(self, name: str, region: str | None) -> Iterator[str]:
        """Yield what its servers have written, a line each, the last hour's."""
        return self._of(self.hands, "logs").logs(name, region)  # type: ignore[no-any-return]

    def remove(self, name: str, region: str | None) -> Iterator[str]:
        """Remove all of it that is there; yield what was removed."""
        return self._of(self.hands, "rm").remove(name, region)  # type: ignore[no-any-return]

    releases: ClassVar[str] = ""
    """The file beside this one that puts a new version beside the old one: by their own names, the methods below."""

    @property
    def applies(self) -> bool:
        """Whether what is rendered is put there from here."""
        return bool(self.hands)

    @property
    def canary(self) -> bool:
        """Whether a new version can stand beside the old one there, with a share of the requests."""
        return bool(self.releases)

    def begin(self, deployment: Deployment, files: Mapping[str, str], share: float) -> Iterator[Event]:
        """Put a new version beside the one that is there, with a share of the requests; it need not be ready yet.

        Raises:
            UsageError: there is none to stand beside, or there are two already.
            RemoteError: the place cannot be reached, or refuses.
        """
        return self._of(self.releases, "a release").begin(deployment, files, share)  # type: ignore[no-any-return]

    def ask(self, name: str, region: str | None, path: str, body: Any) -> Any:
        """Ask the new version, and it alone; return its answer.

        Raises:
            DeploymentError: it fails to answer.
        """
        return self._of(self.releases, "a release").ask(name, region, path, body)

    def send(self, name: str, region: str | None, share: float) -> None:
        """Send the new version, which has answered as it must, its share, where it has none from its begin."""
        if send := getattr(self._of(self.releases, "a release"), "send", None):
            send(name, region, share)

    def watch(self, name: str, region: str | None) -> Health:
        """Count what the two versions were sent, and what they failed to answer, since the release began."""
        return self._of(self.releases, "a release").watch(name, region)  # type: ignore[no-any-return]

    def promote(self, name: str, region: str | None) -> Iterator[Event]:
        """Give all requests to the new version, and remove the old one.

        Raises:
            UsageError: no release is under way.
        """
        return self._of(self.releases, "promote").promote(name, region)  # type: ignore[no-any-return]

    def back(self, name: str, region: str | None) -> Iterator[Event]:
        """Give all requests to the old version, and remove what there is of the new one, however far it came.

        Raises:
            UsageError: no release is under way.
        """
        return self._of(self.releases, "back").back(name, region)  # type: ignore[no-any-return]

    def _of(self, file: str, verb: str) -> Any:
        """Return what does a verb; the place's own library is imported with it."""
        if not file:
            raise self._refusal(verb)
        return import_module(f".{file}", __package__)

    def _refusal(self, verb: str) -> UsageError:
        return UsageError(f"{verb} is not there yet for {self.name}", hint="use the place's own commands")

    def contract(self, deployment: Deployment) -> Contract | None:
        """Return what it does with the server; None where that cannot be run on one machine."""
        del deployment
        return None

    def validate(self, files: Mapping[str, str]) -> Validated | None:
        """Check rendered files by the makers' own tool; None where there is none."""
        del files
        return None


def await_done(done: Callable[[], bool], still: str, *, limit: float, look: float, hint: str = "") -> None:
    """Wait until a place has done something.

    Args:
        done: asks whether it has.
        still: what is said where it has not.
        limit, look: seconds that it may take, and between two looks.
        hint: what to do then.

    Raises:
        RemoteError: it takes longer.
    """
    until = time.monotonic() + limit
    while not done():
        if time.monotonic() > until:
            raise RemoteError(still, hint=hint or "llmasos deploy status tells when it is done")
        time.sleep(look)


def percents(share: float, place: str) -> int:
    """Return a share of the requests as places take it that divide them by whole percents.

    Raises:
        UsageError: it is no whole percent.
    """
    found = round(share * 100)
    if not 0 < found < 100 or abs(found - share * 100) > 1e-6:
        raise UsageError(f"canary={share:.6g}: {place} divides requests by whole percents", hint="--canary 5%")
    return found


# -- how rows are asked -------------------------------------------------------------------------------


def infer(name: str, seconds: float) -> Ask:
    """Ask by the Open Inference Protocol, which knows every task."""

    def body(rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Any:
        data = [json.dumps(row) for row in rows]
        tensor = {"name": "rows", "datatype": "BYTES", "shape": [len(data)], "data": data}
        return {"inputs": [tensor], "parameters": dict(options)}

    def read(answer: Any) -> list[Any]:
        found = {one["name"]: one for one in answer["outputs"]}
        if "prediction" in found:
            return [json.loads(text) for text in found["prediction"]["data"]]
        count, width = found["embedding"]["shape"]
        flat = found["embedding"]["data"]
        return [flat[i * width : (i + 1) * width] for i in range(count)]

    return Ask(f"/v2/models/{name}/infer", seconds, body, read)


def predicted(seconds: float) -> Ask:
    """Ask by the route that the server and ``llmasos-edge`` share."""
    return Ask("/v1/predict", seconds, lambda rows, _: {"inputs": list(rows)}, lambda answer: list(answer["results"]))


def listed(path: str, seconds: float, key: str) -> Ask:
    """Ask with a list of rows under a key; the answer is a list."""
    return Ask(path, seconds, lambda rows, options: {key: list(rows), "parameters": dict(options)}, list)
