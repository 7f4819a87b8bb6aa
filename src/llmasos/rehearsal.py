"""A target's contract, run here against the real server before any money is spent.

The very command line that the place would start is started as a process of this machine; only folders and the port are
others, and it listens to this machine alone. It is asked as the place asks: until it is ready, then for the golden
rows, under load, and to its end, which must lose no request. Every answer is compared with what the golden rows say.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .core import bundle, sandbox
from .core.children import PACKAGE, free_port, handing, processes_below
from .core.environment import child_environment
from .core.errors import DeploymentError, HardwareError, MissingExtraError, UsageError
from .core.events import Event, Note, Phase
from .core.forwarding import Forwarder
from .deployment import Job
from .expected import Compared, Expected
from .targets.base import Contract, Copies

if TYPE_CHECKING:
    import httpx2

CLIENTS, ROWS = 4, 64
"""Requests at once under load, and rows in each."""
LOAD = 2.0
"""Seconds of load."""
PROBES = 10
UNDER_WAY, NOTICE = 2.0, 0.3
"""Seconds that a request takes when the server is told to stop, and before that for one to be sure to have arrived."""
LOG = 1 << 16
"""Bytes of the log that are looked at."""


class LostError(DeploymentError):
    """A request that the server began and did not answer, or turned away."""


@dataclass(frozen=True)
class Step:
    """A part of a contract that was kept.

    Args:
        asked: what the place asks for.
        seen: what was seen.
        seconds: that the step took.
    """

    asked: str
    seen: str
    seconds: float


@dataclass(frozen=True)
class Rehearsal:
    """A contract that was kept, step by step."""

    target: str
    command: tuple[str, ...]
    steps: tuple[Step, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def rehearse(job: Job) -> Generator[Event, None, Rehearsal]:
    """Run the contract of a target.

    Args:
        job: as ``deployment.settled`` gives it.

    Raises:
        UsageError: the target has no contract that one machine can run.
        BundleError: the model has no golden rows.
        DeploymentError: a part of it was not kept; the end of the server's log says more.
    """
    contract = job.target.contract(job.deployment)
    if contract is None:
        raise UsageError(f"{job.target.name} cannot be rehearsed here", hint="--render alone")
    yield Phase("golden rows")
    expected = Expected(job.folder, precision=job.precision())
    with tempfile.TemporaryDirectory(prefix="llmasos-rehearsal-") as place:
        stage = _Stage(contract, expected, Path(place).resolve())
        steps: list[Step] = []
        try:
            for act in _acts(stage, job.folder):
                began = time.monotonic()
                for asked, seen in act():
                    steps.append(Step(asked, seen, round(time.monotonic() - began, 3)))
                    yield Note(f"{asked}: {seen}")
                    began = time.monotonic()
        finally:
            stage.close()
    return Rehearsal(job.target.name, tuple(stage.command), tuple(steps))


Seen = Generator[tuple[str, str], None, None]


def _acts(stage: _Stage, folder: Path) -> list[Callable[[], Seen]]:
    return [lambda: stage.place(folder), stage.start, stage.probe, stage.rows, stage.closed, stage.load, stage.loss,
            stage.roll, stage.end]  # fmt: skip


# -- the server, and what the place does with it ------------------------------------------------------


class _Stage:
    """The server's process and its folder, in which the place's own paths lie."""

    def __init__(self, contract: Contract, expected: Expected, root: Path) -> None:
        self._contract, self._expected, self._root = contract, expected, root
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this
        self._process: subprocess.Popen[bytes] | None = None
        self._all: list[subprocess.Popen[bytes]] = []
        self._handed = socket.create_server(("127.0.0.1", 0), backlog=1024) if contract.handed else None
        self._port = self._handed.getsockname()[1] if self._handed else free_port()
        self._secret, self._model = "", Path()
        self._rows = 8 if expected.options else ROWS
        self.command: list[str] = []
        try:
            import httpx2
        except ImportError as error:
            raise MissingExtraError("a rehearsal", install="httpx2") from error
        self._failed, self._late = (httpx2.TransportError, OSError), httpx2.TimeoutException
        self._http = self._client(self._port)

    def _client(self, port: int) -> httpx2.Client:
        import httpx2

        limits = httpx2.Limits(max_connections=2 * CLIENTS + 4)
        key = {"authorization": f"Bearer {self._secret}"} if self._secret else {}
        return httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=self._contract.ask.seconds, limits=limits,
                             headers=key, trust_env=False)  # fmt: skip

    def _here(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def place(self, folder: Path) -> Seen:
        """Put the model where the place puts it."""
        c, target = self._contract, self._here(self._contract.model)
        self._model = folder.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in c.writable or ():
            self._here(path).mkdir(parents=True, exist_ok=True)
        for path in (c.model, *(c.writable or ()), *([os.path.dirname(c.keys)] if c.keys else [])):
            if c.root is not None:  # where things are mounted
                Path(c.root, path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        if c.keys is not None:
            from .serving.keys import KeyFile

            self._here(c.keys).parent.mkdir(parents=True, exist_ok=True)
            self._secret = KeyFile(self._here(c.keys)).add("rehearsal")
            self._http.headers["authorization"] = f"Bearer {self._secret}"
        for path, text in c.files.items():
            self._here(path).parent.mkdir(parents=True, exist_ok=True)
            self._here(path).write_text(text, encoding="utf-8")
        if c.archive is None:
            target.symlink_to(folder.resolve())
            yield f"the model in {c.model}", "is there"
            return
        packed = self._root / c.archive
        bundle.archive(folder.resolve(), packed)
        target.mkdir()
        with tarfile.open(packed) as archive:
            archive.extractall(target, filter="data")
        size = packed.stat().st_size
        packed.unlink()
        bundle.verify(target)
        yield f"{c.archive} unpacked in {c.model}", f"{size / 1e6:.1f} MB, every file as it was saved"

    def start(self) -> Seen:
        """Start the server, and wait until it is ready."""
        c, began = self._contract, time.monotonic()
        self._process = self._started(self._port)
        yield " ".join(self.command), f"started, as the program in {c.root}" if c.root else "started"
        if c.writable is not None:
            how = sandbox.read_only_problem()
            told = f"not tried here: {how}" if how else f"only {', '.join(c.writable)} can be written, as no root"
            yield "a disk that cannot be written", told
        self._until_ready(began)
        yield f"ready within {c.ready.within:g} s", f"after {time.monotonic() - began:.1f} s"

    def _started(self, port: int) -> subprocess.Popen[bytes]:
        """Start a server."""
        c = self._contract
        words = list(c.words) if c.root else [self._moved(word) for word in c.words]
        for option, value in (("--host", "127.0.0.1"), ("--port", str(port))):
            if option in words:
                words[words.index(option) + 1] = value
            elif option == "--host":
                words += [option, value]
        self.command = [c.module, *words]
        program, variables = self._of_image(words) if c.root else self._of_package(words)
        variables |= {name: str(port) for name, value in c.here.items() if value == str(c.port)}
        if self._handed:
            program = handing(self._handed, program)
        out = subprocess.Popen(
            program, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True,
            env=variables, cwd=self._root, pass_fds=[self._handed.fileno()] if self._handed else [],
        )  # fmt: skip
        self._all.append(out)
        return out

    def _of_package(self, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return what runs this package, and its variables."""
        c = self._contract
        variables = {name: self._moved(value) for name, value in {**c.environment, **c.here}.items()}
        program = [sys.executable, "-P", "-m", c.module, *words]
        if c.writable is not None:
            variables["TMPDIR"] = str(self._here("/tmp"))
            if not sandbox.read_only_problem():
                program = sandbox.read_only(program, [str(self._here(path)) for path in c.writable])
        return program, child_environment(PACKAGE.parent, **variables)

    def _of_image(self, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return what runs an image's own program on the image's own disk, and its variables."""
        c = self._contract
        if problem := sandbox.read_only_problem():
            raise HardwareError(f"an image cannot be run here: {problem}", hint="on Linux where user namespaces are "
                                "allowed")  # fmt: skip
        inside = {path: f"{c.root}{path}" for path in (*(c.writable or ()), c.model)}
        shown = {inside[c.model]: str(self._model)}
        if c.keys:
            shown[f"{c.root}{os.path.dirname(c.keys)}"] = str(self._here(c.keys).parent)
        writable = [inside[path] for path in c.writable or ()]
        return sandbox.read_only([c.module, *words], writable, root=str(c.root), shown=shown), dict(c.environment)

    def _until_ready(self, began: float) -> None:
        """Wait until the server that was started last is ready."""
        ready = self._contract.ready
        while not self._is_well(ready.path, ready.seconds):
            self._alive()
            if time.monotonic() - began > ready.within:
                raise self._broken(f"{ready.path} is not well {ready.within:g} s after the start")
            time.sleep(0.05)

    def probe(self) -> Seen:
        """Ask what the place asks by itself."""
        c, worst, accepted = self._contract, 0.0, 0.0
        for path, limit in {c.ready.path: c.ready.seconds, c.live.path: c.live.seconds}.items():
            for _ in range(PROBES):
                worst = max(worst, self._probed(path, limit))
        yield f"probes answered within {c.ready.seconds:g} s", f"in {worst * 1000:.0f} ms at the most"
        if c.accepts is not None:
            for _ in range(PROBES):
                accepted = max(accepted, self._accepted())
            yield f"connections within {c.accepts * 1000:.0f} ms", f"in {accepted * 1000:.1f} ms at the most"

    def rows(self) -> Seen:
        """Ask for each golden row alone."""
        worst, apart, same = 0.0, 0.0, 0
        for number in range(len(self._expected.rows)):
            began = time.monotonic()
            (found,) = self._ask([number])
            worst, apart, same = max(worst, time.monotonic() - began), max(apart, found.apart), same + found.same
        limit, count = self._contract.ask.seconds, len(self._expected.rows)
        if 2 * same < count:
            raise self._broken(f"{count - same} of {count} golden rows are answered with other texts")
        yield (f"{self._contract.ask.path} answered within {limit:g} s",
               f"{count} golden rows, in {worst:.2f} s at the most; {same} with the same texts, "
               f"numbers {apart:.1g} apart, in {self._expected.precision}")  # fmt: skip

    def closed(self) -> Seen:
        """Ask for what nobody may reach, and without a key."""
        for path in self._contract.closed:
            if (status := self._http.get(path).status_code) != 403:
                raise self._broken(f"{path} is answered with {status}, and nobody may ask it")
        if self._contract.closed:
            yield f"{', '.join(self._contract.closed)} closed", "403"
        if self._secret:
            body = self._contract.ask.body(self._expected.rows[:1], {})
            reply = self._http.post(self._contract.ask.path, json=body, headers={"authorization": "Bearer none"})
            if reply.status_code != 401:
                raise self._broken(f"without a key {self._contract.ask.path} is answered with {reply.status_code}")
            yield "nobody without a key", "401"

    def load(self) -> Seen:
        """Ask by several clients at once, while the place goes on with its probes."""
        until, probes = time.monotonic() + LOAD, list[float]()

        def ask(first: int) -> int:
            asked = 0
            while time.monotonic() < until or not asked:
                self._ask(self._block(first))
                asked += 1
            return asked

        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(ask, client) for client in range(CLIENTS)]
            while not all(client.done() for client in clients):
                probes += [self._probed(self._contract.ready.path, self._contract.ready.seconds),
                           self._probed(self._contract.live.path, self._contract.live.seconds)]  # fmt: skip
                time.sleep(0.1)
            count = sum(client.result() for client in clients) * len(self._block(0))
        rate = count / (time.monotonic() - began)
        self._rows = int(min(max(rate * UNDER_WAY / CLIENTS, self._rows), self._most()))
        yield (f"{CLIENTS} clients at once",
               f"{count} rows answered as the golden rows, {rate:.0f} a second; probes in "
               f"{max(probes) * 1000:.0f} ms at the most")  # fmt: skip

    def loss(self) -> Seen:
        """Kill one of several copies, then a machine that they run on."""
        copies, process = self._contract.copies, self._process
        if copies is None or copies.many < 2:
            return
        assert process is not None
        again = f"killed under load, {copies.many} copies again within {copies.again:g} s"
        yield f"a copy {again}", self._survived(copies, lambda: processes_below(process.pid, copies.called)[:1])

        def machine() -> list[int]:
            _, *others = processes_below(process.pid, copies.machine)  # the first keeps the cluster itself
            most = max(others, key=lambda one: len(processes_below(one, copies.called)))
            return [most, *processes_below(most)]

        if copies.machine:
            yield f"a machine {again}", self._survived(copies, machine)

    def _survived(self, copies: Copies, chosen: Callable[[], list[int]]) -> str:
        """Kill processes under load: only what they were computing may be lost, and soon there are as many copies."""
        assert self._process is not None
        within, process = self._contract.ask.seconds, self._process.pid
        last, killed, lost = float("inf"), float("inf"), list[float]()

        def ask(first: int) -> int:
            asked = 0
            while (began := time.monotonic()) < last:
                try:
                    self._ask(self._block(first))
                    asked += 1
                except LostError:
                    if not killed - within < began < killed + NOTICE:
                        raise
                    lost.append(began)
            return asked

        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(ask, client) for client in range(CLIENTS)]
            try:
                time.sleep(LOAD / 2)
                before = processes_below(process, copies.called)
                if len(before) != copies.many:
                    raise self._broken(f"there are {len(before)} copies, not {copies.many}")
                victims = chosen()
                killed = time.monotonic()
                for one in victims:
                    with suppress(ProcessLookupError):  # it has ended with one before it
                        os.kill(one, signal.SIGKILL)
                while len(set(processes_below(process, copies.called)) - set(victims)) < copies.many:
                    self._alive()
                    if time.monotonic() - killed > copies.again:
                        raise self._broken(f"{copies.again:g} s after a loss there are not {copies.many} copies")
                    time.sleep(0.1)
                again = time.monotonic() - killed
                time.sleep(LOAD)
            finally:
                last = time.monotonic()
            count = sum(client.result() for client in clients)
        gone = len(set(before) & set(victims))
        return (f"{gone} of {copies.many} lost, as many again after {again:.1f} s; {count} requests right, none late, "
                f"{len(lost)} under way lost")  # fmt: skip

    def roll(self) -> Seen:
        """Put another server in this one's place while it is asked, as the place does: no request may be lost."""
        c, old = self._contract, self._process
        if not c.rolls:
            return
        assert old is not None
        before = None if self._handed else Forwarder([self._port])
        http, over = self._client(before.port if before else self._port), threading.Event()

        def ask(first: int) -> list[float]:
            """Ask small requests, one after the other; return the seconds that each took."""
            took, numbers = [], self._block(first)[:8]
            while not over.is_set():
                began = time.monotonic()
                self._ask(numbers, http)
                took.append(time.monotonic() - began)
            return took

        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(ask, client) for client in range(CLIENTS)]
            try:
                time.sleep(LOAD / 2)
                if before:
                    self._begin_next(free_port())
                    before.ports = [before.ports[0], self._port]
                    time.sleep(LOAD / 2)
                    before.ports = [self._port]
                    time.sleep(c.pause)
                self._told_to_end(old)
                if not before:
                    self._begin_next(self._port)
                time.sleep(LOAD / 2)
            finally:
                over.set()
            took = [seconds for client in clients for seconds in client.result()]
        http.close()
        if before:
            before.close()
        how = "the next one beside it" if before else "the next one after it, the socket kept"
        yield (f"another server in its place under load, {how}",
               f"no request lost of {len(took)}, the longest took {max(took):.1f} s")  # fmt: skip

    def _begin_next(self, port: int) -> None:
        """Start another server, which is the one from now on, and wait until it is ready."""
        began = time.monotonic()
        self._process, self._port = self._started(port), port
        self._http.close()
        self._http = self._client(port)
        self._until_ready(began)

    def _told_to_end(self, process: subprocess.Popen[bytes]) -> None:
        """Tell a server to stop, and wait for it."""
        process.send_signal(signal.SIGTERM)
        self._ended(process, time.monotonic())

    def _ended(self, process: subprocess.Popen[bytes], told: float) -> None:
        """Wait until a server has ended, as it must."""
        grace = self._contract.grace
        try:
            code = process.wait(max(0.1, grace - (time.monotonic() - told)))
        except subprocess.TimeoutExpired:
            raise self._broken(f"it has not ended {grace:g} s after SIGTERM") from None
        if code != 0:
            raise self._broken(f"it ended with exit code {code}")

    def end(self) -> Seen:
        """Tell the server to stop while it answers, as the place does."""
        c, process = self._contract, self._process
        assert process is not None
        last, told, turned = float("inf"), float("inf"), list[float]()

        def ask(first: int) -> int:
            """Ask until the last request; return how many were under way when the server was told."""
            while (began := time.monotonic()) < last:
                try:
                    self._ask(self._block(first))
                except LostError:
                    if began < told - NOTICE:
                        raise
                    turned.append(began)  # it came as the server closed
                    return 0
                if time.monotonic() > told:
                    return 1
            return 0

        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(ask, client) for client in range(CLIENTS)]
            try:
                time.sleep(LOAD / 2)
                if c.pause:  # the place has sent its last request a while ago; it must not take this one for dead
                    last = time.monotonic()
                    self._probed(c.live.path, c.live.seconds)
                    time.sleep(NOTICE)
                told = time.monotonic()
                process.send_signal(signal.SIGTERM)
            finally:
                last = min(last, time.monotonic())
            under_way = sum(client.result() for client in clients)
        self._ended(process, told)
        more = f"; {len(turned)} that came as it closed were turned away" if turned else ""
        yield "no request lost at SIGTERM", f"{under_way} under way were answered after it, all right{more}"
        yield f"ended within {c.grace:g} s", f"after {time.monotonic() - told:.1f} s, exit code 0"

    # -- asking ---------------------------------------------------------------------------------------

    def _most(self) -> int:
        """Return the rows that may be in a request, by the server's own bounds of what waits."""
        if self._expected.options:
            return 32
        return int(min(1000, (1 << 17) / CLIENTS / max(1.0, self._expected.tokens)))

    def _block(self, first: int) -> list[int]:
        """Return the numbers of the golden rows of a larger request."""
        return [(first + i) % len(self._expected.rows) for i in range(self._rows)]

    def _ask(self, numbers: Sequence[int], http: httpx2.Client | None = None) -> list[Compared]:
        """Ask for golden rows; return how the answers are to what they must be."""
        ask, rows = self._contract.ask, [self._expected.rows[number] for number in numbers]
        try:
            reply = (http or self._http).post(ask.path, json=ask.body(rows, self._expected.options))
        except self._late as error:
            raise self._broken(f"{ask.path} is not answered within {ask.seconds:g} s") from error
        except self._failed as error:
            raise self._broken(f"{ask.path} broke off: {type(error).__name__}", LostError) from error
        if reply.status_code != 200:
            kind = LostError if reply.status_code >= 500 else DeploymentError
            raise self._broken(f"{ask.path} is answered with {reply.status_code}: {reply.text[:300]}", kind)
        found = ask.read(reply.json())
        if len(found) != len(rows):
            raise self._broken(f"{len(rows)} rows are given {len(found)} answers")
        return [self._expected.check(number, one) for number, one in zip(numbers, found, strict=True)]

    def _is_well(self, path: str, seconds: float) -> bool:
        with suppress(*self._failed):
            return bool(self._http.get(path, timeout=seconds).status_code == 200)
        return False

    def _probed(self, path: str, seconds: float) -> float:
        """Return the seconds that a probe took."""
        began = time.monotonic()
        if not self._is_well(path, seconds):
            self._alive()
            raise self._broken(f"{path} is not answered with 200 within {seconds:g} s")
        return time.monotonic() - began

    def _accepted(self) -> float:
        """Return the seconds until a connection is accepted."""
        limit, began = self._contract.accepts, time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=limit):
                return time.monotonic() - began
        except OSError as error:
            raise self._broken(f"a connection is not accepted within {limit:g} s") from error

    # -- its process ----------------------------------------------------------------------------------

    def _moved(self, text: str) -> str:
        """Return a word or a value with the place's folders replaced by those of this rehearsal."""
        c = self._contract
        folders = [c.model, *([c.keys] if c.keys else []), *(c.writable or ()), *c.here.values(), *c.files]
        folders += [c.environment["LLMASOS_HOME"]]
        for path in sorted({path for path in folders if path.startswith("/")}, key=len, reverse=True):
            if text == path or text.endswith(f"={path}") or text.startswith(f"{path}/"):
                return text.replace(path, str(self._here(path)), 1)
        if text.startswith("/tmp/"):  # where all can be written, the server's own folder is still not this machine's
            return str(self._here(text))
        return text

    def _alive(self) -> None:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise self._broken(f"the server ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}")

    def _broken(self, what: str, kind: type[DeploymentError] = DeploymentError) -> DeploymentError:
        """Return the error of a contract that was not kept, with the end of the server's log."""
        file = self._log.fileno()  # read without moving: the server writes where this file stands
        text = os.pread(file, LOG, max(0, os.fstat(file).st_size - LOG)).decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()][-12:]
        told = "\n".join(f"  {line[:300]}" for line in lines) or "  (nothing)"
        return kind(f"{what}\nthe end of the server's log:\n{told}", hint="llmasos serve shows it alone")

    def close(self) -> None:
        """End the server, whatever it is doing, and whatever it has started."""
        self._http.close()
        for process in self._all:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._handed:
            self._handed.close()
        self._log.close()
