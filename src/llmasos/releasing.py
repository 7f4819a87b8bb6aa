"""A new version beside the old one: tried with a share of the requests, and it takes all or goes again.

What there is to ask of a version is the same in every place: its golden rows, to the new one alone, and how many
requests it fails to answer beside the old one. The place only counts, and moves requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

from .core.errors import DeploymentError, LLMasOSError, RemoteError, UsageError
from .core.events import Event, Note
from .deployment import PATIENCE, Job, Placed, awaited, checked, located, pause, placed
from .expected import Expected
from .targets.base import Counted, Health, State

CHANCE, FEWEST = 0.001, 3
"""A version is worse where one as good as the old one would fail as often by a chance below this; errors needed."""
ENOUGH, ALONE = 20, 0.1
"""Requests of a version without which its errors say nothing; and the share of them that the new one may fail to answer
where the old one had fewer."""
WORST = 3
"""Golden rows that are shown where they are answered otherwise."""


class Release(NamedTuple):
    """A release that ended well.

    Args:
        state: how the deployment is, with the new version alone.
        health: what was counted while there were two.
        rows: golden rows that the new version answered.
    """

    state: State
    health: Health
    rows: int


def release(job: Job, share: float, watch: float, *, patience: float = PATIENCE) -> Generator[Event, None, Release]:
    """Put a new version beside the one that is there, watch it, and let it take all; or put the old one back.

    Args:
        job: as ``deployment.settled`` gives it.
        share: of the requests that the new version gets at first.
        watch: seconds that it is watched.
        patience: seconds that it may take to get ready.

    Raises:
        UsageError: the place has no releases, or there is no version to stand beside.
        BundleError: the model has no golden rows, or is not what it was.
        RemoteError: the place cannot be reached, or refuses.
        DeploymentError: the new version does not answer as it must; the old one has all requests again.
    """
    _check(job.target.name, job.target.canary)
    files = yield from checked(job)
    expected = Expected(job.folder, precision=job.precision(there=True))
    job = located(job)
    target, d = job.target, job.deployment
    where = placed(d.name)
    if (where.target, where.region) != (target.name, d.region):
        raise UsageError(f"{d.name} is in {where.target}, region {where.region}", hint="release it where it is")
    try:
        yield from target.begin(d, files, share)
        yield from awaited(target, d, patience)
        yield from target.finish(d, files)
        yield from _golden(job, expected)
        target.send(d.name, d.region, share)
        health = yield from _watched(job, share, watch)
        yield from awaited(target, d, patience)  # one whose servers died meanwhile has counted no errors
    except DeploymentError as error:
        yield Note(f"back to the old version of {d.name}", "warning")
        try:
            yield from target.back(d.name, d.region)
        except LLMasOSError as again:
            raise DeploymentError(f"{error.message}\nthe old version could not be put back: {again.message}",
                                  hint=f"llmasos deploy back {d.name}") from error  # fmt: skip
        raise DeploymentError(f"{error.message}\nthe old version has all requests again", hint=error.hint) from error
    except RemoteError as error:  # nobody knows how far it came
        raise RemoteError(error.message, hint=f"{error.hint}; llmasos deploy back {d.name} ends the release") from error
    yield from target.promote(d.name, d.region)
    return Release((yield from awaited(target, d, patience)), health, len(expected.rows))


def ended(one: Placed, verb: str) -> Generator[Event, None, None]:
    """End a release that was broken off.

    Args:
        one: where it is.
        verb: ``promote``, for the new version, or ``back``, for the old one.

    Raises:
        UsageError: the place has no releases, or none is under way.
    """
    _check(one.target, one.plugin.canary)
    end = one.plugin.promote if verb == "promote" else one.plugin.back
    yield from end(one.name, one.region)


def worse(health: Health) -> str:
    """Return why the new version is worse than the old one; nothing where its errors do not say so.

    By Fisher's exact test: the chance that errors which came as they may would have fallen on the new version as often
    as they did. A version of a few requests is never worse; where the old one has had but a few, a share says it.
    """
    old, new = health
    if new.requests < ENOUGH or new.errors < FEWEST:
        return ""
    if old.requests < ENOUGH:
        return f"more than {ALONE:.0%} are too many" if new.errors > ALONE * new.requests else ""
    chance = _chance(old, new)
    return f"that is worse, but for a chance of {chance:.1g}" if chance < CHANCE else ""


def _chance(old: Counted, new: Counted) -> float:
    """Return the chance that at least as many of all errors fall among the new version's requests."""
    asked, errors = old.requests + new.requests, old.errors + new.errors

    def ways(total: int, taken: int) -> float:  # their logarithm
        return math.lgamma(total + 1) - math.lgamma(taken + 1) - math.lgamma(total - taken + 1)

    most = min(errors, new.requests)
    return min(1.0, sum(
        math.exp(ways(new.requests, k) + ways(old.requests, errors - k) - ways(asked, errors))
        for k in range(new.errors, most + 1) if errors - k <= old.requests
    ))  # fmt: skip


def _golden(job: Job, expected: Expected) -> Generator[Event, None, None]:
    """Ask the new version for its golden rows.

    Raises:
        DeploymentError: some are answered otherwise; the first ones are shown.
    """
    d, contract = job.deployment, job.target.contract(job.deployment)
    assert contract is not None
    ask, wrong = contract.ask, list[str]()
    for number, row in enumerate(expected.rows):
        try:
            answer = job.target.ask(d.name, d.region, ask.path, ask.body([row], expected.options))
            (found,) = ask.read(answer)
            expected.check(number, found)
        except DeploymentError as error:
            wrong.append(error.message)
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, LLMasOSError):
                raise
            wrong.append(f"golden row {number + 1} is answered with something else")
    count = len(expected.rows)
    if wrong:
        raise DeploymentError(f"{len(wrong)} of {count} golden rows are not answered as they must be:{_lines(wrong)}",
                              hint="--rehearse runs the same here")  # fmt: skip
    yield Note(f"{count} golden rows answered by the new version as they must be")


def _lines(wrong: Sequence[str]) -> str:
    return "".join(f"\n  {one.splitlines()[0][:300]}" for one in wrong[:WORST])


def _watched(job: Job, share: float, watch: float) -> Generator[Event, None, Health]:
    """Watch the new version for a time; return what was counted at its end.

    Raises:
        DeploymentError: it fails more often than the old one.
    """
    d, told, until = job.deployment, "", time.monotonic() + watch
    yield Note(f"{share:.3g} of the requests go to the new version for {watch:g} s")
    while True:
        last = time.monotonic() >= until
        health = job.target.watch(d.name, d.region)
        if (now := _told(health)) != told:
            told = now
            yield Note(told)
        if why := worse(health):
            raise DeploymentError(f"{told}: {why}", hint=f"llmasos deploy logs {d.name}")
        if last:
            break
        time.sleep(min(pause(), max(0.0, until - time.monotonic())))
    if health.new.requests < ENOUGH:
        yield Note(f"the new version had {health.new.requests} requests, too few to judge by: its golden rows decide",
                   "warning")  # fmt: skip
    return health


def _told(health: Health) -> str:
    old, new = health
    return (f"new version: {new.errors} errors of {new.requests} requests; "
            f"old version: {old.errors} of {old.requests}")  # fmt: skip


def _check(name: str, canary: bool) -> None:
    if not canary:
        raise UsageError(f"{name} has no releases with a share of the requests", hint="--apply without --canary")
