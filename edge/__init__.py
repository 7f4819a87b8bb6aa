"""llmasos-edge: an exported model of LLMasOS, run by onnxruntime or OpenVINO, tokenizers and numpy alone."""

from __future__ import annotations

from .edge import Model

__version__ = "0.1.0"
__all__ = ["Model", "__version__"]
