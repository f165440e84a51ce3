"""How far a job is and how long it will still take, whoever shows it. Imports nothing of ours; all times in seconds.

A job runs stage after stage. What each is expected to take is announced once the machine's speed is known; while it
runs, what stages really took corrects what is expected of the rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

TRUST = 0.5
"""How far what other stages took corrects a stage that has not begun: as an exponent of actual over expected. A machine
that slows down slows all stages down (1); an expectation that was wrong was so for one kind of stage (0)."""


class Advance(Protocol):
    """Called when `amount` more units of a stage are done."""

    def __call__(self, amount: int = 1) -> None: ...


class Stages(Protocol):
    """Opens a stage of `total` units (tokens, steps) and gives what advances it; 0 where they cannot be counted.

    A stage ends when the next one is opened.
    """

    def __call__(self, title: str, total: int, unit: str = "steps") -> Advance: ...


def no_advance(amount: int = 1) -> None:
    """Shows nothing."""


def silent_stages(title: str, total: int, unit: str = "steps") -> Advance:
    """Shows nothing."""
    return no_advance


def in_steps(progress: Advance, events: int, total: int) -> Advance:
    """What is called for each of so many events, and calls `progress` `total` times in all, evenly."""
    passed = 0

    def event(amount: int = 1) -> None:
        nonlocal passed
        before = passed * total // max(events, 1)
        passed += amount
        if more := passed * total // max(events, 1) - before:
            progress(more)

    return event


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage that is still to come, and the seconds that it is expected to take."""

    title: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The stage that runs. expected: its seconds, None where nothing was announced; total: 0 where it is not known;
    serial: which of the job's stages it is.
    """

    title: str
    total: int
    unit: str
    began: float
    expected: float | None
    serial: int
    done: int = 0

    @property
    def share(self) -> float | None:
        """Part of it that is done; None where it cannot be counted."""
        return min(self.done / self.total, 1.0) if self.total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A moment of a job. share, left: of the whole; rate: units a second of the stage. None where it is not known."""

    title: str
    unit: str
    stage_share: float | None
    stage_seconds: float
    rate: float | None
    share: float | None
    seconds: float
    left: float | None


def correction(expected: float, actual: float) -> float:
    """By what the expectation of stages to come is multiplied, from the sums over what is done."""
    return float((actual / expected) ** TRUST) if expected > 0 and actual > 0 else 1.0


def stage_left(running: Running, seconds: float, factor: float) -> float:
    """What the running stage still takes after `seconds`: at first as expected, more and more at its own pace."""
    share, expected = running.share, running.expected
    if share is None:
        # Beyond its expectation it can only be said that it has not ended.
        return max((expected or 0.0) * factor - seconds, 0.0)
    paced = seconds / share * (1 - share) if share > 0 else 0.0
    if expected is None:
        return paced
    # The longest samples come first, and go the slowest: their pace says less than it seems.
    weight = min(2 * share, 1.0)
    return weight * paced + (1 - weight) * max(expected * factor * (1 - share), 0.0)


class Display(Protocol):
    """What shows a job. Each is called in the thread that does the work."""

    def begin(self, now: Snapshot) -> None: ...

    def end(self, now: Snapshot) -> None: ...


@dataclass
class Job:
    """Stages of one job, and what is known about its end. Safe to be looked at from another thread."""

    display: Display
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    _lock: threading.RLock = field(init=False, default_factory=threading.RLock)
    took: dict[str, float] = field(init=False, default_factory=dict)
    """Seconds of every stage that has ended, by its title."""
    _serial: int = field(init=False, default=0)
    _running: Running | None = field(init=False, default=None)
    _pending: tuple[Stage, ...] = field(init=False, default=())
    _expected: float = field(init=False, default=0.0)
    _actual: float = field(init=False, default=0.0)
    _share: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def __call__(self, title: str, total: int, unit: str = "steps") -> Advance:
        """Open a stage; the one before it ends. Announced stages that were to come before it are skipped."""
        self.close()
        titles = [stage.title for stage in self._pending]
        expected = None
        with self._lock:
            if title in titles:
                index = titles.index(title)
                expected, self._pending = self._pending[index].seconds, self._pending[index + 1 :]
            self._serial = serial = self._serial + 1
            self._running = Running(
                title=title, total=total, unit=unit, began=self.clock(), expected=expected, serial=serial
            )
        self._show(self.display.begin)

        def advance(amount: int = 1) -> None:
            with self._lock:
                if self._running is not None and self._running.serial == serial:
                    self._running = replace(self._running, done=self._running.done + amount)

        return advance

    def expect(self, stages: Sequence[Stage]) -> None:
        """Announce every stage that is still to come, in order."""
        with self._lock:
            self._pending, self._expected, self._actual = tuple(stages), 0.0, 0.0

    def close(self) -> None:
        """End the running stage, if there is one."""
        if self._running is None:
            return
        self._show(self.display.end)
        with self._lock:
            running, self._running = self._running, None
            seconds = self.clock() - running.began
            self.took[running.title] = self.took.get(running.title, 0.0) + seconds
            if running.expected is not None:
                self._expected += running.expected
                self._actual += seconds

    def snapshot(self) -> Snapshot | None:
        """Where the job is now; None between stages."""
        with self._lock:
            running, now = self._running, self.clock()
            if running is None:
                return None
            seconds, elapsed = now - running.began, now - self.began
            factor = self._factor(running, seconds)
            left = stage_left(running, seconds, factor) + factor * sum(stage.seconds for stage in self._pending)
            announced = running.expected is not None or bool(self._pending)
            if announced and elapsed + left > 0:
                # Corrections may push the end away; a bar that runs backwards says less than one that waits.
                self._share = max(self._share, min(elapsed / (elapsed + left), 0.99))
            return Snapshot(
                title=running.title,
                unit=running.unit,
                stage_share=running.share,
                stage_seconds=seconds,
                rate=running.done / seconds if running.done and seconds > 0 else None,
                share=self._share if announced else None,
                seconds=elapsed,
                left=left if announced else None,
            )

    def _factor(self, running: Running, seconds: float) -> float:
        expected, actual = self._expected, self._actual
        if running.expected is not None and running.share is not None and running.share >= 0.1:
            expected, actual = expected + running.share * running.expected, actual + seconds
        return correction(expected, actual)

    def _show(self, shown: Callable[[Snapshot], None]) -> None:
        if (now := self.snapshot()) is not None:
            shown(now)
