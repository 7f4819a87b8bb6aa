"""What a source is: a place that models come from, and the way from a reference to a folder.

A reference is what a user writes: a folder, ``pkg:name``, ``org/name``. The sources are asked in
their order, and the first that knows the form of the reference fetches it. Adding a source is adding
a file beside this one with a ``PLUGIN``.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from ..core import plugins
from ..core.errors import UsageError


class Located(NamedTuple):
    """A model's folder on this machine.

    ``ref`` is the reference as given; ``revision`` the exact version, where the source has versions;
    ``source`` the source's name; ``base``, for an adapter, where its base model is, if no longer where it was.
    """

    path: Path
    ref: str
    revision: str | None
    source: str
    base: str | Path | None = None


class Source(Protocol):
    """A place that models come from."""

    order: int
    """Sources with lower numbers are asked first; the widest form of reference comes last."""

    def matches(self, ref: str) -> bool:
        """Say whether the reference has this source's form; asks no network."""

    def fetch(self, ref: str, *, revision: str | None, cache_dir: Path | None, weights: bool = True) -> Located:
        """Bring the model to this machine and check its folder.

        Args:
            ref: a reference that ``matches``.
            revision: the version wanted; the newest if None.
            cache_dir: where downloads go; the source's usual place if None. Nothing else is written.
            weights: whether the weights are needed too, or only configuration and tokenizer.

        Raises:
            UsageError: there is no such model, or the source has no versions and one was given.
            BundleError: the model is damaged or unsafe.
            RemoteError: the source cannot be reached, or refused.
        """


def locate(
    ref: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None, weights: bool = True
) -> Located:
    """Find the folder of a model, whatever it comes from. See ``Source.fetch`` for arguments and errors."""
    # a Path is a folder, also where its text looks like another form
    text = str(Path(ref).absolute()) if isinstance(ref, Path) else ref.strip()
    sources: list[Source] = [plugins.load("sources", name) for name in plugins.names("sources")]
    for source in sorted(sources, key=lambda source: source.order):
        if source.matches(text):
            folder = Path(cache_dir).expanduser() if cache_dir is not None else None
            found = source.fetch(text, revision=revision, cache_dir=folder, weights=weights)
            return found._replace(ref=str(ref))
    raise UsageError(
        f"{str(ref)!r} is not a reference to a model",
        hint="give a folder, a URL, pkg:NAME of an installed package, or a Hub id such as org/name",
    )


def refuse_revision(ref: str, revision: str | None) -> None:
    """Raise where a version was asked of a source that has none: ignoring it would use another model."""
    if revision is not None:
        raise UsageError(f"{ref} has no revisions, but revision={revision!r} was given", hint="leave revision out")
