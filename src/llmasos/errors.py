"""The public home of the error tree (defined and drawn in ``core/errors.py``)."""

from .core.errors import (
    BundleError,
    DataError,
    HardwareError,
    LLMasOSError,
    MissingExtraError,
    NotFittedError,
    ParityError,
    RemoteError,
    TrainingError,
    TruncatedWarning,
    UsageError,
)

__all__ = [
    "BundleError",
    "DataError",
    "HardwareError",
    "LLMasOSError",
    "MissingExtraError",
    "NotFittedError",
    "ParityError",
    "RemoteError",
    "TrainingError",
    "TruncatedWarning",
    "UsageError",
]
