"""A package that lives here or in an environment of its own, which a variable names.

Some take minutes to build, some pin what the rest of this environment cannot live with. One environment of a machine
may have them for all others.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import environment
from .errors import MissingExtraError, UsageError


@dataclass(frozen=True)
class Elsewhere:
    """Such a package.

    Args:
        package: its name in Python.
        variable: what names the environment that has it.
        install: what pip installs.
        what: what needs it.
    """

    package: str
    variable: str
    install: str
    what: str

    def folder(self) -> Path:
        """Return the package's folder: of the environment that is named, else of this one.

        Raises:
            MissingExtraError: none is named, and it is not installed here.
            UsageError: the environment that is named does not have it.
        """
        named = environment.environment_named(self.variable)
        if named is not None:
            for place in ("", "lib/python3*/site-packages/", "Lib/site-packages/"):
                if found := next(iter(sorted(named.glob(place + self.package))), None):
                    return found
            raise self._wrong(named, f"has no {self.package}")
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(self.what, install=f"{self.install}, or {self.variable}=an environment that has it")
        return Path(spec.submodule_search_locations[0])

    def run(self, script: Path, words: Sequence[str]) -> list[str]:
        """Run a script by the Python of that environment, to whose packages nothing of this one is added.

        Returns:
            The lines that it wrote before it failed; none where it did not.

        Raises:
            MissingExtraError, UsageError: see ``folder``.
        """
        self.folder()
        done = subprocess.run(
            [self._python(), "-I", str(script), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", check=False,
        )  # fmt: skip
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return lines or [f"exit code {done.returncode}"] if done.returncode else []

    def _python(self) -> str:
        named = environment.environment_named(self.variable)
        if named is None:
            return sys.executable
        found = next((path for path in (named / "bin/python", named / "Scripts/python.exe") if path.exists()), None)
        if found is None:
            raise self._wrong(named, "has no Python")
        return str(found)

    def _wrong(self, named: Path, why: str) -> UsageError:
        return UsageError(
            f"{self.variable}={named} {why}",
            hint=f"the folder of an environment in which `pip install {self.install}` was run",
        )
