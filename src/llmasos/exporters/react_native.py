"""An Expo project: TypeScript, and react-native-executorch, which brings ExecuTorch and Hugging Face's tokenizers."""

from __future__ import annotations

from ._mobile import MobileFormat


class ReactNativeFormat(MobileFormat):
    """An app for both kinds of phones, in React Native."""

    target = project = "react-native"


PLUGIN = ReactNativeFormat()
