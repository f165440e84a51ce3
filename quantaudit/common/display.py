"""A sign of life on stderr: one bar in a terminal, plain lines anywhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task
from rich.text import Text

from quantaudit.common.progress import Job, Snapshot

BEAT = 20.0
"""Seconds of silence after which a line says how far it is, at most 30 on a machine that is slow to wake a thread."""
_TITLE_WIDTH = 29


@contextmanager
def progress(console: Console) -> Iterator[Job]:
    """Gives what opens the stages of one job, for as long as the context lasts. The terminal is left as it was."""
    shown: _Bar | _Lines = _Bar(console) if console.is_terminal and not console.is_dumb_terminal else _Lines(console)
    job = Job(shown)
    shown.start(job)
    ended = False
    try:
        yield job
        ended = True
        job.close()
    finally:
        shown.stop(ended)


class _Bar:
    """One bar for the whole job. An error finds it gone."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def start(self, job: Job) -> None:
        columns: list[ProgressColumn] = [
            SpinnerColumn("line" if self.console.options.ascii_only else "dots"),
            _Column(job, lambda now: f"{now.title[:_TITLE_WIDTH]:<{_TITLE_WIDTH}}"),
            BarColumn(bar_width=max(6, min(40, self.console.width - _TITLE_WIDTH - 44))),
            _Column(job, lambda now: "    " if now.share is None else f"{now.share:4.0%}"),
            _Column(job, lambda now: f"{time_left(now):>12}"),
            _Column(job, lambda now: speed(now), style="progress.data.speed"),
        ]
        self.bars = _Following(job, *columns, console=self.console, transient=True)
        self.bars.task = self.bars.add_task("", total=None)
        self.job = job

    def begin(self, now: Snapshot) -> None:
        self.bars.start()

    def end(self, now: Snapshot) -> None:
        pass

    def stop(self, ended: bool) -> None:
        if self.bars.live.is_started:
            self.bars.stop()


class _Following(Progress):
    """Asks the job how far it is whenever it is drawn, so that it moves within a long step too."""

    def __init__(self, job: Job, *columns: Any, **options: Any) -> None:
        self.job = job
        self.task: Any = None
        super().__init__(*columns, **options)

    def get_renderables(self) -> Any:
        now = self.job.snapshot()
        if now is not None and now.share is not None and self.task is not None:
            self.update(self.task, total=1.0, completed=now.share)
        yield from super().get_renderables()


class _Column(ProgressColumn):
    """A text about the moment."""

    def __init__(self, job: Job, text: Any, style: str = "none") -> None:
        super().__init__()
        self.job, self.text, self.style = job, text, style

    def render(self, task: Task) -> Text:
        now = self.job.snapshot()
        return Text("" if now is None else self.text(now), style=self.style, no_wrap=True, overflow="crop")


class _Lines:
    """A line when a stage begins and ends, and one at every beat, whatever the work is inside."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stopped, self.spoken = threading.Event(), threading.Event()

    def start(self, job: Job) -> None:
        self.job = job
        self.thread = threading.Thread(target=self._beat, name="sign of life", daemon=True)
        self.thread.start()

    def begin(self, now: Snapshot) -> None:
        self._say(f"{now.title}{_whole(now)}")

    def end(self, now: Snapshot) -> None:
        self._say(f"{now.title}: done in {duration(now.stage_seconds)}")

    def stop(self, ended: bool) -> None:
        self.stopped.set()
        self.spoken.set()
        self.thread.join(timeout=1)

    def _say(self, line: str) -> None:
        # Never wrapped to a width: logs are searched by line.
        with suppress(OSError):  # a full disk or a closed log is no reason to end
            self.console.print(Text(line), highlight=False, soft_wrap=True)
        self.spoken.set()

    def _beat(self) -> None:
        while not self.stopped.is_set():
            if self.spoken.wait(BEAT):
                self.spoken.clear()
            elif (now := self.job.snapshot()) is not None:
                self._say(status_line(now))
                self.spoken.clear()


def status_line(now: Snapshot) -> str:
    """How far a stage and the whole are, in plain ASCII."""
    parts = [] if now.stage_share is None else [f"{now.stage_share:.0%}"]
    parts += [duration(now.stage_seconds), *([rate] if (rate := speed(now)) else [])]
    return f"{now.title}: {', '.join(parts)}{_whole(now)}"


def _whole(now: Snapshot) -> str:
    if now.share is None:
        return ""
    return f" (whole job: {now.share:.0%} after {duration(now.seconds)}, {time_left(now)})"


def speed(now: Snapshot) -> str:
    """Units a second, or seconds a unit below one; empty before the first."""
    if now.rate is None:
        return ""
    unit = now.unit.removesuffix("s")
    return f"{now.rate:,.0f} {now.unit}/s" if now.rate >= 1 else f"{1 / now.rate:,.1f} s/{unit}"


def time_left(now: Snapshot) -> str:
    """Of the whole job."""
    return "" if now.left is None else f"{duration(now.left)} left"


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
