"""A Swift package for iPhones and Macs with an app: SwiftUI, and ExecuTorch's package for Swift."""

from __future__ import annotations

from ._mobile import WordPieceFormat


class IosFormat(WordPieceFormat):
    """An app for iPhones."""

    target = project = "ios"


PLUGIN = IosFormat()
