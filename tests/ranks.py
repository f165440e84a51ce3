"""Ranks as threads of one process, of which one runs at a time: they exchange where real ones would."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quantaudit.common.ranks.team import Team, joined

T = TypeVar("T")
PATIENCE = 120.0
"""Seconds after which ranks that wait for each other have met at different places."""


@dataclass
class _Meeting:
    """Where the ranks of a team wait for each other; at each, all of them bring a value and take the result."""

    size: int
    turn: threading.Condition = field(default_factory=threading.Condition)
    brought: dict[int, Any] = field(default_factory=dict)
    result: Any = None
    number: int = 0
    failed: bool = False

    def meet(self, rank: int, value: Any, combine: Callable[[list[Any]], Any]) -> Any:
        """The result of `combine` over all ranks' values. The lock is held by whoever runs."""
        self.brought[rank] = value
        if len(self.brought) == self.size:
            self.result = combine([self.brought[other] for other in range(self.size)])
            self.brought, self.number = {}, self.number + 1
            self.turn.notify_all()
        else:
            number = self.number
            if not self.turn.wait_for(lambda: self.number > number or self.failed, PATIENCE) or self.failed:
                raise RuntimeError(f"rank {rank} waits for others that do not come")
        return copy.deepcopy(self.result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads(Team):
    """A rank that is a thread."""

    meeting: _Meeting

    def combined(self, value: Any, combine: Callable[[list[Any]], Any]) -> Any:
        return self.meeting.meet(self.rank, value, combine)

    def from_first(self, value: Any) -> Any:
        return self.meeting.meet(self.rank, value, lambda values: values[0])


def as_ranks(size: int, work: Callable[[int], T]) -> list[T]:
    """What `work`, called with its number, returns on each of so many ranks. Raises the first error of any."""
    meeting = _Meeting(size)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        with meeting.turn:
            try:
                with joined(Threads(rank=rank, size=size, meeting=meeting)):
                    results[rank] = work(rank)
            except BaseException as error:
                errors.append(error)
                meeting.failed = True
                meeting.turn.notify_all()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]
