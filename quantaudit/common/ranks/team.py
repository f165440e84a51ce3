"""What a run that several processes share is made of: each has the whole model, and a part of the samples.

Whoever computes deals its samples, and combines what every rank has made of its part; float sums are combined sample by
sample, in the order of one process, so that results are the same bytes whatever the number of ranks is. A process that
nobody shares its work with is a team of one. Imports no torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The ranks of a run, as one of them sees them. local: among those of the same machine. This one is alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def combined(self, value: T, combine: Callable[[list[T]], R]) -> R:
        """What `combine`, called on the first rank, makes of the values of all ranks, in their order; on every rank.

        Waits for all. Raises RankError where one has ended.
        """
        return combine([value])

    def from_first(self, value: T) -> T:
        """The first rank's value, on every rank."""
        return value

    def at_end(self, cleanup: Callable[[], None]) -> None:
        """Have it called on a rank that is not the first, once the first one has written its results."""

    def only_first_goes_on(self) -> None:
        """From here on there is nothing to share. Raises SystemExit on the other ranks, which end with the first."""


_ALONE = Team()
_TEAM: ContextVar[Team] = ContextVar("team", default=_ALONE)


def team() -> Team:
    """The ranks that share the work of this moment."""
    return _TEAM.get()


@contextmanager
def joined(members: Team) -> Iterator[None]:
    """Within the context work is shared."""
    token = _TEAM.set(members)
    try:
        yield
    finally:
        _TEAM.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """Within the context this rank does all that it begins, whatever the others do."""
    with joined(_ALONE):
        yield


def deal(items: Sequence[T], cost: Callable[[T], int]) -> list[T]:
    """This rank's part of the items, in their order. Each goes, the costliest first, to the rank that has least."""
    size, rank = team().size, team().rank
    if size == 1:
        return list(items)
    loads = [(0, other) for other in range(size)]
    own = []
    for place in sorted(range(len(items)), key=lambda place: (-cost(items[place]), place)):
        load, least = heapq.heappop(loads)
        heapq.heappush(loads, (load + cost(items[place]), least))
        if least == rank:
            own.append(place)
    return [items[place] for place in sorted(own)]


def gather(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank."""
    return team().combined(value, list)


def joint(parts: dict[str, T]) -> dict[str, T]:
    """What all ranks hold together, by key, on every rank; of two of one key the first rank's."""
    return {key: value for part in reversed(gather(parts)) for key, value in part.items()}


def in_order(values: Iterable[float]) -> float:
    """The sum, added up one by one: rounded as any process does it."""
    total = 0.0
    for value in values:
        total += value
    return total


def agreed(work: Callable[[], T], failures: tuple[type[Exception], ...], *, undo: Callable[[T], None]) -> T:
    """The result of `work`, where it succeeds on every rank. Raises what it raised here; RuntimeError where elsewhere.

    failures: what others are to know of; anything else ends this rank. undo: called with a result that is not used.
    """
    error: Exception | None = None
    try:
        result = work()
    except failures as failed:
        error = failed
    first = next((text for text in gather(None if error is None else str(error)) if text is not None), None)
    if error is not None:
        raise error
    if first is not None:
        undo(result)
        raise RuntimeError(first)
    return result


def part_name() -> str:
    """Names what depends on how work is dealt; nothing for a process that is alone."""
    members = team()
    return f" of rank {members.rank} of {members.size}" if members.size > 1 else ""
