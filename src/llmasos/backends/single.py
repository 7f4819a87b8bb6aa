"""One process, one device: the default."""

from __future__ import annotations

from .base import Backend

PLUGIN = Backend
