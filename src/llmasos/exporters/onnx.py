"""ONNX for ONNX Runtime and transformers.js; see ``_onnx.py``."""

from __future__ import annotations

from ._onnx import OnnxFormat

PLUGIN = OnnxFormat()
