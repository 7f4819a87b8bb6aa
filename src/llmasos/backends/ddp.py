"""Data parallelism: every process holds the whole model and computes a part of each step's rows."""

from __future__ import annotations

from ._parallel import DataParallel

PLUGIN = DataParallel
