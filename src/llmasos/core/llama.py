"""llama.cpp, by its Python package: here, or in another environment that ``LLMASOS_LLAMA_CPP`` names.

It is built for the machine from source, which takes minutes and a compiler, so one environment of a machine may have it
for all others: of that one only this package is used, whose library depends on no version of Python.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from .elsewhere import Elsewhere
from .errors import BundleError

_PACKAGE = "llama_cpp"
_HOME = Elsewhere(_PACKAGE, "LLMASOS_LLAMA_CPP", "llama-cpp-python", "a GGUF model")


def load() -> Any:
    """Return the module of llama.cpp's functions.

    Raises:
        MissingExtraError: it is not installed.
        UsageError: ``LLMASOS_LLAMA_CPP`` names no environment that has it.
    """
    if _PACKAGE not in sys.modules:
        sys.modules[_PACKAGE] = _package()
    return importlib.import_module(f"{_PACKAGE}.llama_cpp")


def quantize(source: Path, target: Path) -> None:
    """Write a file of float16 anew in blocks of four bits, as llama.cpp mixes them (Q4_K_M).

    Raises:
        BundleError: llama.cpp cannot.
    """
    library = load()
    silence(library)
    params = library.llama_model_quantize_default_params()
    params.ftype = library.LLAMA_FTYPE_MOSTLY_Q4_K_M
    params.nthread = 1
    if library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise BundleError(f"llama.cpp cannot quantize {source}", hint="--quantize q8_0")


def version() -> str:
    """Return the version of the package."""
    found = metadata.distributions(name="llama_cpp_python", path=[str(_HOME.folder().parent)])
    return next((one.version for one in found), "of no version")


def silence(library: Any) -> None:
    """Keep llama.cpp from telling what it does."""
    if not hasattr(library, "llmasos_silent"):
        library.llmasos_silent = library.llama_log_callback(lambda *_: None)  # it must live as long as the library
        library.llama_log_set(library.llmasos_silent, None)


def _package() -> ModuleType:
    """Return the package without running it: what it adds for its users needs more packages."""
    place = _HOME.folder()
    module = ModuleType(_PACKAGE)
    module.__path__ = [str(place)]
    module.__spec__ = importlib.util.spec_from_loader(_PACKAGE, None, is_package=True)
    return module
