from __future__ import annotations

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


def test_where_nothing_can_be_isolated_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "_problem", lambda: "no namespaces")
    monkeypatch.setattr(sandbox, "_run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(HardwareError, match="cannot be isolated: no namespaces"):
        sandbox.run("pass")
