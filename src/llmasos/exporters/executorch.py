"""ExecuTorch's own format; see ``_executorch.py``."""

from __future__ import annotations

from ._executorch import ExecuTorchFormat

PLUGIN = ExecuTorchFormat()
