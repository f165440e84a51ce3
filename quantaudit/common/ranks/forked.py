"""Ranks as forks of this process, which begin with all that it has in memory: its model, its text, its profile.

Operations of a small model are too short to be shared out among threads: these wait for each other at every one of
them, and on a busy machine for whoever else has the processor. Whole samples are not. A fork computes in one thread
(OpenMP's others do not survive a fork), says nothing, and ends with what it was forked for, or with this process.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn, TypeVar, cast

import torch

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.common.ranks.team import Team, joined, team
from quantaudit.errors import RankError

T = TypeVar("T")
R = TypeVar("R")

GRACE = 5.0
"""Seconds in which a fork that is told to end does so."""
_PR_SET_PDEATHSIG = 1
_ALLOWED: ContextVar[bool] = ContextVar("forks allowed", default=False)


@contextmanager
def forks_allowed() -> Iterator[None]:
    """Within the context work may be shared with forks: of a process that is ours, not of whoever imports this."""
    token = _ALLOWED.set(sys.platform.startswith("linux"))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def can_fork() -> bool:
    """Whether work may be shared with forks here: not by a rank, nor by a process that uses an accelerator."""
    return _ALLOWED.get() and team().size == 1 and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def run_forked(work: Callable[[Stages], T], count: int, stages: Stages = silent_stages) -> T:
    """What `work` returns to the first of `count` ranks, which is this process; the others are forks of it.

    Each computes in one thread. stages: those of this process, which are shown. Raises what a fork has raised, and
    RankError where one was killed.
    """
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(1, count)]
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        # A collection of garbage would write to all objects that there are, and so copy what forks have in common.
        gc.freeze()
        stack.callback(gc.unfreeze)
        for rank, (ours, theirs) in enumerate(pipes, 1):
            fork = context.Process(target=_run_fork, args=(work, rank, count, pipes, os.getpid()), daemon=True)
            fork.start()
            theirs.close()
            stack.callback(ours.close)
            stack.callback(_end, fork)
        stack.enter_context(joined(_First(size=count, pipes=[ours for ours, _ in pipes])))
        return work(stages)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context PyTorch computes in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _end(fork: Any) -> None:
    fork.terminate()
    fork.join(GRACE)
    fork.kill()
    fork.join()


def _run_fork(
    work: Callable[[Stages], object], rank: int, size: int, pipes: Sequence[tuple[Connection, Connection]], parent: int
) -> NoReturn:
    """All that a fork does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends its forks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Another thread of the parent may have held the locks of its streams while it forked: nothing is said through them.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    logging.disable()
    members = _Fork(rank=rank, size=size, pipe=pipes[rank - 1][1], cleanups=[])
    failed: BaseException | None = None
    try:
        with joined(members):
            work(silent_stages)
    except BaseException as error:
        failed = error
    for cleanup in members.cleanups:
        cleanup()
    members.pipe.send(_Ended(None if failed is None else _portable(failed)))
    os._exit(0)


def _portable(error: BaseException) -> BaseException:
    """The error, or what it says, where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RankError(f"{type(error).__name__}: {error}", hint="set OMP_NUM_THREADS=1 to run it in one process")
    return error


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last that a fork sends. error: what ended it; None where it had nothing left to do."""

    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _First(Team):
    pipes: Sequence[Connection]

    def combined(self, value: T, combine: Callable[[list[T]], R]) -> R:
        result = combine([value, *(cast("T", _received(pipe)) for pipe in self.pipes)])
        return self.from_first(result)

    def from_first(self, value: T) -> T:
        for pipe in self.pipes:
            try:
                pipe.send(value)
            except OSError:
                _received(pipe)  # raises what has ended the fork
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fork(Team):
    pipe: Connection
    cleanups: list[Callable[[], None]]

    def combined(self, value: T, combine: Callable[[list[T]], R]) -> R:
        self.pipe.send(value)
        return cast("R", self.pipe.recv())

    def from_first(self, value: T) -> T:
        return cast("T", self.pipe.recv())

    def at_end(self, cleanup: Callable[[], None]) -> None:
        self.cleanups.append(cleanup)


def _received(pipe: Connection) -> Any:
    """What a fork sends. Raises its error, or RankError where it is gone."""
    try:
        value = pipe.recv()
    except (EOFError, OSError):
        value = _Ended(None)
    if not isinstance(value, _Ended):
        return value
    raise value.error or RankError(
        "a process that shares this run's work was killed, perhaps for want of memory",
        hint="set OMP_NUM_THREADS=1 to run it in one process; --resume goes on from what was kept",
    )
