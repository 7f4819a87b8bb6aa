"""Build the small distribution from the sources of the large one: no file is kept twice.

The package imports itself only relatively, so a subset of its files is a package of another name.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "src" / "llmasos"
PARTS = """
certificate edge evaluation golden hosting prediction
cli/_edge
core/atomic core/bundle core/config core/environment core/errors core/events core/hardware core/hosts core/parts
core/plugins core/storage
data/arrow data/batching data/columns data/dataset data/dealing data/encoding data/files data/ledger data/lines
data/origin data/shards data/squad data/tokenizer
engines/_graph engines/_writing engines/base engines/onnxruntime engines/openvino
serving/keys
metrics/base metrics/entities metrics/similarity metrics/tokens metrics/answers metrics/classification
tasks/_vocabulary tasks/_words tasks/base tasks/fill_mask tasks/question_answering tasks/sentence_similarity
tasks/text_classification tasks/token_classification
"""


class Picked(build_py):
    """Take the files from the sources of llmasos, and the package's own front door from here."""

    def run(self) -> None:
        """Copy them into the build."""
        target = Path(self.build_lib) / "llmasos_edge"
        for name in (*PARTS.split(), "py.typed"):
            file = name if name.endswith(".typed") else f"{name}.py"
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SOURCES / file, target / file)
        shutil.copy(HERE / "__init__.py", target / "__init__.py")

    def get_source_files(self) -> list[str]:
        """Return what a source distribution needs; only wheels are built."""
        return []


setup(cmdclass={"build_py": Picked}, packages=["llmasos_edge"], package_dir={"llmasos_edge": "."})
