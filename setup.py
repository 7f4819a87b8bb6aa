"""What pyproject.toml cannot say: the TypeScript SDK and the example apps lie beside the package, and travel in it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
BESIDE = {"typescript": HERE / "sdks" / "typescript", "scaffolds": HERE / "examples" / "apps"}
"""What ``llmasos export --target web`` builds its page from, and ``llmasos new app`` projects; by their names there."""
LEFT = ("node_modules", "dist", "test", ".gitignore", "wire.py", "__pycache__", ".*_cache")


class WithTheRest(build_py):
    """Copy them into the package."""

    def run(self) -> None:
        """Copy what is Python's, then the rest."""
        super().run()
        if self.editable_mode:  # read where they are
            return
        for name, source in BESIDE.items():
            target = Path(self.build_lib) / "llmasos" / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT))


setup(cmdclass={"build_py": WithTheRest})
