"""What pyproject.toml cannot say: the sources of the TypeScript SDK lie beside the package, and travel in it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SDK = Path(__file__).parent / "sdks" / "typescript"


class WithSDK(build_py):
    """Copy ``sdks/typescript`` into the package, from which ``llmasos export --target web`` builds its page."""

    def run(self) -> None:
        """Copy what is Python's, then the SDK."""
        super().run()
        if self.editable_mode:  # read where they are
            return
        target = Path(self.build_lib) / "llmasos" / "typescript"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(SDK, target, ignore=shutil.ignore_patterns("node_modules", "dist", "test", ".gitignore"))


setup(cmdclass={"build_py": WithSDK})
