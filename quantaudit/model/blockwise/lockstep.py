"""Many batches run through a model side by side: each waits before every decoder block until all have arrived.

Every batch is an unmodified call of the model in a greenlet of its own, with its own masks and arguments. So a block's
weights have to be in memory once for all batches, whatever the architecture, and nothing is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from greenlet import greenlet
from torch import nn

from quantaudit.model.blockwise.thread_state import ThreadState
from quantaudit.model.forward.hooks import Arguments, Keywords, watch_inputs

T = TypeVar("T")


class Store(Protocol):
    """Where the arguments of blocks lie while batches wait."""

    def put(self, key: int, values: Any) -> None: ...

    def take(self, key: int) -> None: ...


@dataclass(slots=True)
class _Waiting(Generic[T]):
    """A batch before a block. number: its place among all; block: the one that it waits at, None once it is done."""

    number: int
    batch: T
    thread: greenlet
    state: ThreadState
    block: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch(Generic[T]):
    """What is called in the course of a run.

    turn: a batch goes on from here. during: the context in which it does; from the block that it waits at, None from
    the beginning. passed: it went through as many of so many blocks. left: all batches are through a block.
    """

    turn: Callable[[T], None] = field(default=lambda _batch: None)
    during: Callable[[T, int | None], AbstractContextManager[None]] = field(default=lambda _batch, _at: nullcontext())
    passed: Callable[[T, int, int], None] = field(default=lambda _batch, _done, _of: None)
    left: Callable[[int], None] = field(default=lambda _block: None)


def run_in_lockstep(
    model: nn.Module,
    blocks: Sequence[str],
    batches: Iterable[T],
    run: Callable[[T], Any],
    *,
    store: Store,
    watch: Watch[T] | None = None,
    order: Callable[[T, int], Any] | None = None,
    only: int | None = None,
) -> None:
    """Call `run` for every batch, block by block: of all batches that wait, those at the first block go on.

    A result of `run` is dropped. blocks: paths of the modules to wait before, in the order in which the model calls
    them; another order costs loads of weights, and changes no result. order: key by which batches take turns at a
    block, as they came by default. only: end after so many blocks, whatever is left to do. Whatever `run` raises ends
    all batches, and says in which it was.
    """
    _Lockstep(model, blocks, run, store, watch or Watch()).run(batches, order, only)


class _Lockstep(Generic[T]):
    def __init__(
        self, model: nn.Module, blocks: Sequence[str], run: Callable[[T], Any], store: Store, watch: Watch[T]
    ) -> None:
        self._modules = [model.get_submodule(path) for path in blocks]
        self._run_batch, self._store, self._watch = run, store, watch
        device = next(parameter for parameter in model.parameters() if not parameter.is_meta).device
        self._devices = tuple(dict.fromkeys(("cpu", device.type)))
        self._running: dict[greenlet, _Waiting[T]] = {}
        self._scheduler = greenlet.getcurrent()

    def run(self, batches: Iterable[T], order: Callable[[T, int], Any] | None, only: int | None) -> None:
        """Start every batch, then let them through the blocks, one block after another."""
        outside = ThreadState.now(self._devices)
        try:
            with self._paused():
                for number, batch in enumerate(batches):
                    self._go_on(self._started(number, batch))
                visited = 0
                while self._running and visited != only:
                    block = min(waiting.block for waiting in self._running.values())  # type: ignore[type-var]
                    here = [waiting for waiting in self._running.values() if waiting.block == block]
                    if order is not None:
                        here.sort(key=lambda waiting: order(waiting.batch, block))  # type: ignore[arg-type]
                    for waiting in here:
                        self._store.take(waiting.number)
                        self._go_on(waiting)
                        self._watch.passed(waiting.batch, block + 1, len(self._modules))  # type: ignore[operator]
                    self._watch.left(block)  # type: ignore[arg-type]
                    visited += 1
        finally:
            self._end_all(outside)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """While this lasts, batches stop before the blocks: before anything else that is called there."""
        with ExitStack() as stack:
            for index, module in enumerate(self._modules):
                stack.enter_context(watch_inputs(module, self._pause_before(index), first=True))
            yield

    def _pause_before(self, index: int) -> Callable[[nn.Module, Arguments, Keywords], None]:
        def pause(_module: nn.Module, args: Arguments, kwargs: Keywords) -> None:
            waiting = self._running.get(greenlet.getcurrent())
            if waiting is None:  # somebody runs the model by themselves meanwhile
                return
            waiting.block = index
            self._store.put(waiting.number, (args, kwargs))
            waiting.state = ThreadState.now(self._devices)
            self._scheduler.switch()

        return pause

    def _started(self, number: int, batch: T) -> _Waiting[T]:
        thread = greenlet(lambda: self._run_batch(batch), parent=self._scheduler)
        thread.gr_context = copy_context()  # else it would begin with an empty one
        waiting = _Waiting(number, batch, thread, ThreadState.now(self._devices))
        self._running[thread] = waiting
        return waiting

    def _go_on(self, waiting: _Waiting[T]) -> None:
        """Let a batch run to the block that it waits at next, or to its end."""
        scheduler = ThreadState.now(self._devices)
        self._watch.turn(waiting.batch)
        with self._watch.during(waiting.batch, waiting.block):
            waiting.state.restore()
            try:
                waiting.thread.switch()
            except BaseException as error:
                error.add_note(f"in batch {waiting.number + 1}")
                raise
            finally:
                if waiting.thread.dead:
                    del self._running[waiting.thread]
                    waiting.block = None
                scheduler.restore()

    def _end_all(self, outside: ThreadState) -> None:
        """Unwind the batches that still wait, in the state that each of them is in."""
        while self._running:
            thread, waiting = self._running.popitem()
            waiting.state.restore()
            with suppress(Exception):  # what ended the run is what counts
                thread.throw()
        outside.restore()
