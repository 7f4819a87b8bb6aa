"""Ray Serve, told by its dashboard's REST: put there, released and removed on a real cluster beside somebody else's."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from golden_targets import save_light
from llmasos.cli import main
from llmasos.core.children import free_port, processes_below
from llmasos.core.errors import DeploymentError, RemoteError, UsageError
from llmasos.core.events import result_of
from llmasos.deployment import Job, apply, placed, removed, settled
from llmasos.expected import Expected
from llmasos.releasing import release, worse
from llmasos.targets import _ray_release

OTHER = """
import os
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    def __call__(self, request) -> str:
        return f"{os.getpid()} {os.environ['SECRET']}"

app = Other.bind()
"""
"""An application of somebody else; it tells its process."""


# -- without a cluster --------------------------------------------------------------------------------


@contextmanager
def dashboard(status: int, content: Any) -> Iterator[tuple[str, list[str | None]]]:
    """Answer as a dashboard would; give its address, and the tokens that it was shown."""
    shown: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("authorization"))
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", shown
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def put_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Remember a deployment as one that was put on a cluster."""
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))

    def remember(address: str) -> None:
        (tmp_path / "deployments").mkdir(exist_ok=True)
        (tmp_path / "deployments" / "mine.json").write_text(
            json.dumps({"name": "mine", "target": "ray", "region": address})
        )

    return remember


def test_a_cluster_that_cannot_be_reached_is_told(put_before, capsys):
    put_before(f"http://127.0.0.1:{free_port()}")
    assert main(["deploy", "status", "mine"]) == 1
    told = capsys.readouterr().err
    assert "cannot be reached" in told
    assert "--set address=" in told
    put_before("127.0.0.1:8265")
    assert main(["deploy", "rm", "mine"]) == 2
    assert "is not that of a Ray dashboard" in capsys.readouterr().err


def test_what_is_no_dashboard_is_told(put_before, capsys):
    with dashboard(404, "no such page") as (address, _):
        put_before(address)
        assert main(["deploy", "status", "mine"]) == 1
    assert "answers 404" in capsys.readouterr().err


def test_a_cluster_is_shown_rays_own_token_and_no_other(put_before, capsys, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token")
    with dashboard(200, {"applications": {}}) as (address, shown):
        put_before(address)
        assert main(["deploy", "status", "mine", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["state"] is None
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert main(["deploy", "status", "mine"]) == 0
    assert shown == [None, "Bearer the-token"]
    with dashboard(401, "no") as (address, _):
        put_before(address)
        assert main(["deploy", "status", "mine"]) == 2
    told = capsys.readouterr().err
    assert "another token" in told
    assert "the-token" not in told


def test_an_address_with_a_password_is_neither_remembered_nor_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path / "home"))
    model = save_light(tmp_path / "model")
    line = ["deploy", "ray", str(model), "--apply", "--name", "mine"]
    assert main([*line, "--set", "address=http://me:hidden@127.0.0.1:9"]) == 2
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://me:hidden@127.0.0.1:9")
    assert main(line) == 2
    told = capsys.readouterr()
    assert "holds a password" in told.err
    assert "hidden" not in told.err + told.out
    assert not (tmp_path / "home" / "deployments").exists()


# -- a real one ---------------------------------------------------------------------------------------


class Ours:
    """A cluster of two machines that are this one, with a dashboard, and an application of somebody else."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.model, self.other_model = folder, folder / "model", folder / "other"
        (folder / "theirs.py").write_text(OTHER)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        node = {"num_cpus": 3, "object_store_memory": 80_000_000}
        self.port, dashboard_port = free_port(), free_port()
        self.cluster = Cluster(initialize_head=True, head_node_args={
            **node, "include_dashboard": True, "dashboard_port": dashboard_port,
        })  # fmt: skip
        self.cluster.add_node(**node, include_dashboard=False)
        self.address, self.url = f"http://127.0.0.1:{dashboard_port}", f"http://127.0.0.1:{self.port}"

    def job(self, **changed: Any) -> Job:
        given = {"name": "mine", "cpus": 1, "precision": "float32", "port": self.port, "address": self.address,
                 "route": "/ours", "keys_file": str(self.folder / "home" / "keys.json")}  # fmt: skip
        return settled("ray", self.model, {**given, **changed})

    def applications(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(f"{self.address}/api/serve/applications/").json()["applications"]
        return found

    def put_theirs(self) -> None:
        theirs = {"name": "theirs", "route_prefix": "/", "import_path": "theirs:app",
                  "runtime_env": {"env_vars": {"SECRET": "kept"}}}  # fmt: skip
        content = {"http_options": {"host": "127.0.0.1", "port": self.port}, "proxy_location": "HeadOnly",
                   "applications": [theirs]}  # fmt: skip
        httpx2.put(f"{self.address}/api/serve/applications/", json=content, timeout=120).raise_for_status()
        until = time.monotonic() + 60
        while self.applications()["theirs"]["status"] != "RUNNING":
            assert time.monotonic() < until
            time.sleep(0.2)

    def theirs(self) -> str:
        return httpx2.get(self.url, timeout=30).text

    def copy(self, name: str) -> int:
        """Return the process of an application's copy."""
        (copy,) = self.applications()[name]["deployments"]["server"]["replicas"]
        return int(copy["pid"])


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    pytest.importorskip("grpc_reflection", reason="needs ray[serve]")
    from llmasos.serving.keys import KeyFile
    from served_models import tuned

    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_AUTH_MODE", "LLMASOS_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        patch.setenv("LLMASOS_HOME", str(folder / "home"))
        found = Ours(folder)
        try:
            tuned(folder / "a", "text-classification").rename(found.model)
            tuned(folder / "b", "text-classification", seed=7).rename(found.other_model)
            patch.setenv("LLMASOS_API_KEY", KeyFile(folder / "home" / "keys.json").add("tests"))
            found.put_theirs()
            yield found
        finally:
            found.cluster.shutdown()


class Clients:
    """Clients that ask all the time and look at each answer, until the block ends."""

    def __init__(self, url: str, expected: Expected, many: int = 3) -> None:
        self.seen: Counter[str] = Counter()
        self._url, self._expected = f"{url}/ours/v1/predict", expected
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(many)]

    def _ask(self, number: int) -> None:
        with httpx2.Client(headers={"authorization": f"Bearer {os.environ['LLMASOS_API_KEY']}"}, timeout=60) as http:
            while not self._over.is_set():
                row = number % len(self._expected.rows)
                number += 1
                try:
                    reply = http.post(self._url, json={"inputs": [self._expected.rows[row]]})
                    if reply.status_code == 200:
                        self._expected.check(row, reply.json()["results"][0])
                    self.seen[str(reply.status_code)] += 1
                except (httpx2.TransportError, DeploymentError) as error:
                    self.seen[f"{type(error).__name__}: {error}"] += 1
                time.sleep(0.03)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def until(events: Any, words: str) -> list[str]:
    """Go on until something is told; return all that was."""
    told: list[str] = []
    while not told or words not in told[-1]:
        told.append(str(next(events)))
    return told


@pytest.mark.slow
def test_an_application_is_put_there_looked_at_and_removed_and_others_stay(ours, capsys):
    before = ours.theirs()
    assert before.endswith(" kept")
    with pytest.raises(UsageError, match="the route / is that of application theirs"):
        result_of(apply(ours.job(route="/")))
    with pytest.raises(UsageError, match="there is application theirs already"):
        result_of(apply(ours.job(name="theirs")))
    assert main(["deploy", "rm", "theirs"]) == 0  # what was remembered of it; it is not ours
    found = result_of(apply(ours.job()))
    assert (found.word, found.ready, found.address) == ("RUNNING", True, f"{ours.url}/ours")
    with Clients(ours.url, Expected(ours.model)) as clients:
        time.sleep(2)
    assert set(clients.seen) == {"200"}
    capsys.readouterr()
    assert main(["deploy", "status", "mine", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["region"], told["state"]["word"]) == (ours.address, "RUNNING")
    assert main(["deploy", "logs", "mine"]) == 0
    assert "/v1/predict" in capsys.readouterr().out
    first = ours.copy("mine")
    result_of(apply(ours.job(memory="1GB")))  # again, with another option: updated in place
    assert ours.copy("mine") != first
    assert main(["deploy", "rm", "mine"]) == 0
    assert "removed application mine" in capsys.readouterr().err
    assert set(ours.applications()) == {"theirs"}
    assert ours.theirs() == before
    with pytest.raises(UsageError, match="no deployment 'mine'"):
        placed("mine")


@pytest.mark.slow
def test_what_never_gets_ready_is_removed_with_its_reason(ours):
    with pytest.raises(DeploymentError, match=r"never got ready: (.|\n)*/nowhere") as error:
        result_of(apply(ours.job(model="/nowhere")))
    assert "the end of its log" in error.value.message
    assert set(ours.applications()) == {"theirs"}
    with pytest.raises(DeploymentError, match="not ready within 20 s"):
        result_of(apply(ours.job(cpus=64), patience=20.0))
    assert set(ours.applications()) == {"theirs"}


@pytest.mark.slow
def test_where_the_next_never_gets_ready_the_one_before_it_is_told_again(ours):
    result_of(apply(ours.job()))
    with pytest.raises(DeploymentError, match=r"never got ready: (.|\n)*/nowhere(.|\n)*what was there before is back"):
        result_of(apply(ours.job(model="/nowhere")))
    last = time.monotonic() + 60
    while (mine := ours.applications()["mine"])["status"] != "RUNNING":
        assert time.monotonic() < last, mine
        time.sleep(0.2)
    assert mine["deployed_app_config"]["args"]["models"] == {"mine": str(ours.model)}
    with Clients(ours.url, Expected(ours.model)) as clients:
        time.sleep(1)
    assert set(clients.seen) == {"200"}
    assert removed(placed("mine")) == ["application mine"]
    assert set(ours.applications()) == {"theirs"}


@pytest.mark.slow
def test_releases_lose_no_request_whatever_becomes_of_them(ours, capsys, monkeypatch):
    before, expected = ours.theirs(), Expected(ours.model)
    with pytest.raises(UsageError, match="no deployment 'mine'"):
        result_of(release(ours.job(), 0.3, 1))
    result_of(apply(ours.job()))
    with Clients(ours.url, expected) as clients:
        found = result_of(release(ours.job(), 0.3, 8))  # it takes all
        assert found.rows == len(expected.rows)
        assert found.state.address == f"{ours.url}/ours"
        assert set(ours.applications()) == {"theirs", "mine-next"}
        asked = found.health.new.requests / sum(one.requests for one in found.health)
        assert sum(one.requests for one in found.health) > 50
        assert 0.1 < asked < 0.5
        assert (found.health.old.errors, found.health.new.errors) == (0, 0)

        wrong = ours.job(model=str(ours.other_model))  # other weights: put back
        with pytest.raises(DeploymentError, match="golden rows are not answered as they must be"):
            result_of(release(wrong, 0.3, 60))
        assert set(ours.applications()) == {"theirs", "mine-next"}

        events = release(ours.job(), 0.5, 600)  # broken off by Ctrl-C
        until(events, "of the requests go to the new version")
        with pytest.raises(KeyboardInterrupt):
            events.throw(KeyboardInterrupt)
        with pytest.raises(UsageError, match="a release of mine is under way"):
            result_of(apply(ours.job()))
        with pytest.raises(UsageError, match="a release of mine is under way"):
            result_of(release(ours.job(), 0.5, 1))
        killed = ours.copy("mine")
        time.sleep(1)
        os.kill(killed, signal.SIGKILL)  # the new version's copy: its errors are counted, and no client sees one
        last = time.monotonic() + 60
        while (health := _ray_release.watch("mine", ours.address)).new.errors == 0:
            assert time.monotonic() < last, health
            time.sleep(0.2)
        assert main(["deploy", "back", "mine"]) == 0
        assert set(ours.applications()) == {"theirs", "mine-next"}
        assert main(["deploy", "back", "mine"]) == 2
        assert "no release of mine is under way" in capsys.readouterr().err
    assert set(clients.seen) == {"200"}, clients.seen
    assert clients.seen["200"] > 300
    print(clients.seen, found.health, health, worse(health))

    events = release(ours.job(), 0.5, 600)  # removed in its midst
    until(events, "of the requests go to the new version")
    events.close()
    assert sorted(removed(placed("mine"))) == ["application mine", "application mine-next"]
    assert set(ours.applications()) == {"theirs"}
    assert ours.theirs() == before
    assert not processes_below(os.getpid(), "ray::Counts")


@pytest.mark.slow
def test_a_release_needs_a_key_before_anything_is_made(ours, monkeypatch):
    result_of(apply(ours.job()))
    monkeypatch.delenv("LLMASOS_API_KEY")
    with pytest.raises(UsageError, match="asked with a key"):
        result_of(release(ours.job(), 0.3, 1))
    with socket.socket() as taken:  # nobody answers there
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("LLMASOS_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(RemoteError, match="the old version cannot be asked"):
            result_of(release(ours.job(), 0.3, 1))
    assert set(ours.applications()) == {"theirs", "mine"}
    removed(placed("mine"))
