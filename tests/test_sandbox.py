from __future__ import annotations

import os
import sys

import pytest

from llmasos.core import sandbox
from llmasos.core.errors import HardwareError

isolated = pytest.mark.skipif(
    sys.platform != "linux" or bool(sandbox._problem()), reason="this system grants no namespaces"
)


@isolated
def test_a_program_that_ends_passes():
    assert sandbox.run("assert sorted([2, 1]) == [1, 2]") == (True, "")


@isolated
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "ended early"),
        ("import os; os._exit(0)", "ended early"),
        ("x = bytearray(1 << 31)", "MemoryError"),
        ("open('big', 'wb').write(b'x' * (1 << 25))", "File too large|No space left|ended early"),
        ("while True: print('x' * 100_000)", "File too large|ended early"),
        ("import socket; socket.create_connection(('127.0.0.1', 22), 1)", "unreachable|refused"),
        ("import os; os.kill(os.getppid(), 0) if os.getppid() else 1 / 0", "ZeroDivisionError"),
        ("import os, pathlib; pathlib.Path(os.__file__).touch()", "Read-only file system"),
    ],
)
def test_what_a_program_must_not_do_fails(program, reason):
    import re

    outcome = sandbox.run(program, seconds=5)
    assert not outcome.passed
    assert re.search(reason, outcome.reason), outcome


@isolated
def test_a_program_that_does_not_end_is_ended():
    outcome = sandbox.run("while True: pass", seconds=1)
    assert not outcome.passed
    assert "seconds" in outcome.reason or "ended early" in outcome.reason


@isolated
def test_nothing_that_a_program_writes_remains():
    assert sandbox.run("open('left', 'w').write('x')").passed
    assert sandbox.run("import os; assert sorted(os.listdir()) == ['program.py']").passed


@isolated
def test_a_program_can_have_another_disk_and_sees_what_it_is_shown(tmp_path):
    import subprocess

    if problem := sandbox.read_only_problem():
        pytest.skip(problem)
    places = [path for path in ("/usr", "/lib", "/lib64", "/bin", sys.base_prefix) if os.path.isdir(path)]
    for path in (*places, "/proc", "/dev", "/tmp", "/model"):
        (tmp_path / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    (tmp_path / "only-here").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights").write_text("w")
    shown = {f"{tmp_path}{path}": path for path in places} | {f"{tmp_path}/model": str(tmp_path / "data")}
    program = """
import os
assert os.path.exists("/only-here") and not os.path.exists("/etc/passwd") and os.getuid() == 10001
assert open("/model/weights").read() == "w"
open("/tmp/mine", "w").write("x")
for path in ("/only-here", "/model/weights", "/new"):
    try:
        open(path, "w")
    except OSError:
        continue
    raise AssertionError(path)
"""
    python = os.path.realpath(sys.executable)
    words = sandbox.read_only([python, "-I", "-S", "-c", program], [f"{tmp_path}/tmp"], root=str(tmp_path), shown=shown)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "tmp" / "mine").exists()


def test_where_nothing_can_be_isolated_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "_problem", lambda: "no namespaces")
    monkeypatch.setattr(sandbox, "_run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(HardwareError, match="cannot be isolated: no namespaces"):
        sandbox.run("pass")
