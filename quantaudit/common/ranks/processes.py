"""Ranks as processes that `torchrun` starts, joined by torch.distributed. Nothing else knows of either.

All that ranks exchange lies in main memory and is added up on the host, in a fixed order: they speak through gloo on
every machine, whatever their devices are. Only the first rank prints; what the others say goes to a log of theirs,
which is removed when all went well. A rank that ends before the others ends all: the first rank says which it was.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from quantaudit.common.ranks import team as teams
from quantaudit.common.ranks.team import Team
from quantaudit.errors import RankError

if TYPE_CHECKING:
    from quantaudit.common.ranks.exchange import Exchange
    from quantaudit.common.ranks.watch import Watch

T = TypeVar("T")
R = TypeVar("R")

JOINING = timedelta(minutes=10)
"""How long ranks wait for each other to start."""
LINGER = 10.0
"""Seconds that another rank waits before it ends with an error that the first one may have too, and say better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which of how many ranks this process is, of all and of those on its machine, as its launcher says."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def log(self) -> Path:
        """Where a rank writes what it says. Ranks of one machine have one parent."""
        return Path(tempfile.gettempdir()) / f"quantaudit-ranks-{os.getppid()}" / f"rank-{self.rank}.log"


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """This process among its ranks; alone where it was not started as one of several."""
    try:
        size = int(environ["WORLD_SIZE"]) if {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys() else 1
        if size < 2:
            return Place()
        return Place(
            rank=int(environ["RANK"]),
            size=size,
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            local_size=int(environ.get("LOCAL_WORLD_SIZE", "1")),
        )
    except (KeyError, ValueError):
        return Place()


def enter() -> Place:
    """Begin as one of several ranks, if this is one: others than the first write to their logs from here on."""
    here = place()
    if here.size > 1:
        from quantaudit.common.ranks.watch import Watch

        console = os.dup(2)
        if here.rank:
            here.log.parent.mkdir(mode=0o700, exist_ok=True)
            log = os.open(here.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
        _Running.watch = Watch(rank=here.rank, size=here.size, log=here.log, console=console)
    return here


class _Running:
    """Of this process. watch: None where it is alone."""

    watch: Watch | None = None


@contextmanager
def joined() -> Iterator[None]:
    """Within the context all ranks share the work. Raises RankError where one does not come, or ends before the end."""
    here, watch = place(), _Running.watch
    if watch is None:
        yield
        return
    from quantaudit.common.ranks.exchange import Exchange

    store = _store(here)
    watch.begin(store, _meet(store, here))
    try:
        exchange = Exchange(store, here.rank, here.size)
    except RuntimeError as error:
        raise watch.error() from error
    members = _Processes(
        rank=here.rank,
        size=here.size,
        local_rank=here.local_rank,
        local_size=here.local_size,
        exchange=exchange,
        watch=watch,
    )
    try:
        with teams.joined(members):
            yield
        members.from_first(None)  # the first one has written
    except Finished:
        members.from_first(None)
        _forget(here, watch)
        raise
    watch.leave()
    _forget(here, watch)


class Finished(SystemExit):
    """The work of a rank is done; what is left to do is the first one's. A success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Processes(Team):
    exchange: Exchange
    watch: Watch

    def combined(self, value: T, combine: Callable[[list[T]], R]) -> R:
        with self._explained():
            values = self.exchange.to_first(value)
        return self.from_first(combine(values) if self.rank == 0 else cast("R", None))

    def from_first(self, value: T) -> T:
        with self._explained():
            return cast("T", self.exchange.from_first(value))

    def at_end(self, cleanup: Callable[[], None]) -> None:
        if self.rank:
            self.watch.cleanups.append(cleanup)

    def only_first_goes_on(self) -> None:
        if self.rank:
            raise Finished(0)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises RankError instead of what says which connection was lost."""
        try:
            yield
        except RuntimeError as error:
            raise self.watch.error() from error


def failed(message: str, *, of_another: bool = False) -> None:
    """To be called before this process ends with an error: the others are to know, and the first one prints first.

    of_another: whether it is another rank's error that ends this one.
    """
    watch = _Running.watch
    if watch is None:
        return
    watch.fail(None if of_another and watch.rank else message)
    if watch.rank and not watch.begun:
        time.sleep(LINGER)


def _store(here: Place) -> Any:
    """Where ranks leave word for each other. Raises RankError where it is not to be reached."""
    from torch.distributed.rendezvous import rendezvous

    try:
        return next(rendezvous("env://", timeout=JOINING))[0]
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {here.rank} of {here.size} cannot reach the others: {str(error).splitlines()[0]}",
            hint="start all ranks with torchrun, or without RANK and WORLD_SIZE in the environment to run alone",
        ) from error


def _meet(store: Any, here: Place) -> list[dict[str, Any]]:
    """Wait for all ranks. Returns of each which process it is. Raises RankError, with those that did not come."""
    about = {"host": socket.gethostname(), "pid": os.getpid(), "log": str(here.log)}
    store.set(f"here/{here.rank}", json.dumps(about))
    try:
        store.wait([f"here/{rank}" for rank in range(here.size)], JOINING)
    except RuntimeError as error:
        missing = [str(rank) for rank in range(here.size) if not store.check([f"here/{rank}"])]
        raise RankError(
            f"rank {', '.join(missing)} of {here.size} did not come within {JOINING.seconds // 60} minutes",
            hint="see why in the output of its machine",
        ) from error
    return [json.loads(store.get(f"here/{rank}")) for rank in range(here.size)]


def _forget(here: Place, watch: Watch) -> None:
    """Leave nothing behind."""
    for cleanup in watch.cleanups:
        cleanup()
    watch.leave()
    if here.rank:
        sys.stdout.flush()
        sys.stderr.flush()
        here.log.unlink(missing_ok=True)
    with suppress(OSError):
        here.log.parent.rmdir()
