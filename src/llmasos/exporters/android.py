"""A project for Android Studio: Kotlin, and ExecuTorch's library for Android."""

from __future__ import annotations

from ._mobile import WordPieceFormat


class AndroidFormat(WordPieceFormat):
    """An app for Android."""

    target = project = "android"


PLUGIN = AndroidFormat()
