"""Run a Python program that nobody has read: without network, with little of everything, or not at all.

The program runs in Linux namespaces of its own: no network, no other processes, the whole disk read-only but
for a small folder in memory; its user has no rights in them. Time, memory, file size and number of processes are
limited. Where the system grants no such namespaces, nothing runs: there is no way to ask for less.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from typing import IO, NamedTuple

from .errors import HardwareError

DISK = 16 << 20
"""Bytes that a program may write, into a file or to what it prints."""
PROCESSES = 32


class Outcome(NamedTuple):
    """Whether a program ran to its end, and if not, why: the last line that it said, or the limit that it met."""

    passed: bool
    reason: str = ""


def run(program: str, *, seconds: float = 5.0, memory: int = 1 << 30) -> Outcome:
    """Run a program to its end, which must be reached: leaving early does not count.

    Args:
        program: Python source.
        seconds: of processor time and, nearly, of the clock.
        memory: address space in bytes.

    Raises:
        HardwareError: the system cannot isolate the program.
    """
    if problem := _problem():
        raise HardwareError(
            f"code that a model wrote is not run here, for it cannot be isolated: {problem}",
            hint="run on Linux where user namespaces are allowed (in a container: without seccomp's default profile)",
        )
    return _run(program, seconds, memory)


@cache
def _problem() -> str:
    """Return why nothing can be isolated here, or nothing."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    tried = _run("import os; assert os.getpid() == 1", 10.0, 1 << 30)
    return "" if tried.passed else tried.reason or "the trial failed"


def _run(program: str, seconds: float, memory: int) -> Outcome:
    word = secrets.token_hex(16)
    source = f"{program}\n\nimport sys as _sys\n_sys.stderr.flush()\nprint({word!r}, flush=True)\n"
    limits = [str(int(seconds) + 1), str(memory), str(DISK), str(PROCESSES)]
    with (
        tempfile.TemporaryDirectory(prefix="llmasos-code-") as folder,
        tempfile.TemporaryFile() as out,  # files, not pipes: the limit on a file's size holds for what is printed too
        tempfile.TemporaryFile() as err,
    ):
        argv = [sys.executable, "-I", "-S", "-c", _INSIDE, folder, *limits]
        try:
            done = subprocess.run(
                argv, input=source.encode(), stdout=out, stderr=err, timeout=seconds + 2, cwd=folder, check=False,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": folder},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Outcome(False, f"took more than {seconds:g} seconds")
        if _tail(out).rstrip().endswith(word):
            return Outcome(True)
        said = _tail(err).strip().splitlines()
    return Outcome(False, said[-1][:200] if said else f"ended early, with code {done.returncode}")


def _tail(file: IO[bytes], size: int = 4096) -> str:
    """Return the end of what was printed."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    return file.read().decode(errors="replace")


# In a process of its own, because namespaces can only be left by the whole of a single-threaded process. The user
# inside is no root, so that the last exec takes away all rights that the namespaces gave.
_BEGIN = r"""
import ctypes, os, resource, sys
libc = ctypes.CDLL(None, use_errno=True)

def must(result, what):
    if result != 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")

def enter(namespaces, person):
    user, group = os.getuid(), os.getgid()
    must(libc.unshare(namespaces), "no namespaces")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{person} {user} 1"), ("gid_map", f"{person} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    PRIVATE = 0x4000 | 0x40000
    must(libc.mount(b"none", b"/", None, PRIVATE, None), "no mounts of its own")
    attributes = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # read-only
    must(libc.syscall(442, -100, b"/", 0x8000, ctypes.byref(attributes), 32), "no read-only disk")

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
"""
_INSIDE = (
    _BEGIN
    + r"""
folder, seconds, memory, disk, processes = sys.argv[1], *map(int, sys.argv[2:])
source = sys.stdin.buffer.read()
enter(NEWNS | NEWIPC | NEWUSER | NEWPID | NEWNET, 1000)
must(libc.mount(b"none", folder.encode(), b"tmpfs", 6, f"size={disk},mode=777".encode()), "no folder in memory")
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 255)
must(libc.prctl(1, 9, 0, 0, 0), "no end with its parent")
must(libc.prctl(38, 1, 0, 0, 0), "no renouncing of rights")
os.chdir(folder)
with open("program.py", "wb") as file:
    file.write(source)
for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, disk),
                   (resource.RLIMIT_NPROC, processes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
    resource.setrlimit(what, (most, most))
null = os.open("/dev/null", os.O_RDONLY)
os.dup2(null, 0)
os.execv(sys.executable, [sys.executable, "-I", "-S", "program.py"])
"""
)
_READ_ONLY = (
    _BEGIN
    + r"""
import warnings  # execvp needs it, and finds it on this disk alone
root, count = sys.argv[1], int(sys.argv[2])
folders, words = sys.argv[3 : 3 + count], sys.argv[3 + count :]
enter(NEWNS | NEWUSER, 10001)
BIND = 0x1000 | 0x4000
for folder in folders:
    folder, _, source = folder.partition(":")
    if source:
        must(libc.mount(source.encode(), folder.encode(), None, BIND, None), f"{folder} does not become {source}")
    else:
        must(libc.mount(b"none", folder.encode(), b"tmpfs", 6, b"mode=777"), "no folder in memory")
if root:
    for folder in ("/dev", "/proc"):
        must(libc.mount(folder.encode(), (root + folder).encode(), None, BIND, None), f"no {folder}")
    os.chroot(root)
    os.chdir("/")
os.execvp(words[0], words)
"""
)


def read_only(words: Sequence[str], writable: Sequence[str], *, root: str = "", shown: Mapping[str, str] | None = None,
              ) -> list[str]:  # fmt: skip
    """Return a command line that runs a program on a disk that it cannot write, but for folders in memory.

    The program has the process's own number, and is no root.

    Args:
        words: the program, by its full path or as ``PATH`` finds it, and its arguments.
        writable: full paths of folders that are there; what lies in them is hidden.
        root: a folder that is the whole disk to the program; empty for this machine's.
        shown: files and folders of this machine, as they are, by the paths in whose places they are shown.
    """
    places = [*writable, *(f"{place}:{source}" for place, source in (shown or {}).items())]
    return [sys.executable, "-I", "-S", "-c", _READ_ONLY, root, str(len(places)), *places, *words]


@cache
def read_only_problem() -> str:
    """Return why no program can be run so here, or nothing."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    with tempfile.TemporaryDirectory() as folder:
        asked = read_only([sys.executable, "-I", "-S", "-c", ""], [folder])
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["the trial failed"])[-1]
