"""Keeps an eye on the other ranks of a run, from a thread: a rank that ends, however, ends all, and one says which.

Ranks leave word for each other in a store of torch.distributed: that they are alive, that one has failed, that one was
stopped. A launcher such as torchrun stops all ranks as soon as one has ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from quantaudit.errors import RankError

BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 120.0
"""Seconds without one after which a rank is given up: its machine is gone, or its process hangs."""
_KILLED = "was killed; the system does so where memory runs out"
_STOPPED = "stopped by SIGTERM, and so were all ranks"
ENDING = 20.0
"""Seconds in which a rank that is to end does so by itself."""


class Watch:
    """What one rank knows of the others. console: descriptor of where the launcher shows errors.

    SIGTERM, with which a launcher stops a rank when another has ended, raises RankError in the first rank and ends any
    other.
    """

    def __init__(self, *, rank: int, size: int, log: Path, console: int) -> None:
        self.rank, self.size, self._log, self._console = rank, size, log, console
        self.cleanups: list[Callable[[], None]] = []
        self._store: Any = None
        self._everyone: list[dict[str, Any]] = []
        self._cause: RankError | None = None
        self._given_up: set[int] = set()
        self._ending = False
        self._wakeup, written = socket.socketpair()
        written.setblocking(False)
        self._written = written
        signal.signal(signal.SIGTERM, self._stopped)
        signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="other ranks", daemon=True).start()

    @property
    def begun(self) -> bool:
        """Whether all ranks have met."""
        return self._store is not None

    def begin(self, store: Any, everyone: list[dict[str, Any]]) -> None:
        """From here on the others are watched. everyone: host, pid and log of each rank."""
        self._everyone, self._store = everyone, store

    def fail(self, message: str | None) -> None:
        """This rank ends with an error; None for one that is another rank's."""
        self._ending = True
        if message is None:
            self._speak_for_the_first()
        self._leave_word("stopped" if message is None else "failed", message or "")

    def leave(self) -> None:
        """This rank has done its part."""
        self._ending = True
        self._leave_word("left", "")

    def error(self, otherwise: str = "another rank has ended") -> RankError:
        """What ends a run whose ranks no longer answer. otherwise: what is known where no rank can be named."""
        if self._cause is None:
            deadline = time.monotonic() + 2.0  # a connection breaks before its process is gone, or has left word
            while (cause := self._find()) is None and time.monotonic() < deadline:
                time.sleep(0.1)
            self._cause = cause or RankError(
                otherwise,
                hint="see the launcher's own report; the same command with --resume goes on from what was kept",
            )
        return self._cause

    def _stopped(self, *_signal: Any) -> None:
        # Others than the first end in the thread, without a word of their own.
        if self.rank == 0 and not self._ending:
            self._ending = True
            raise self.error(_STOPPED)

    def _run(self) -> None:
        """Of the thread."""
        seen: dict[int, tuple[str | None, float]] = {}
        while True:
            if self._signalled(BEAT):
                break
            if self._store is None or self._ending:
                continue
            if (cause := self._beat(seen)) is not None:
                self._cause = cause
                os.kill(os.getpid(), signal.SIGTERM)
        self._end()

    def _beat(self, seen: dict[int, tuple[str | None, float]]) -> RankError | None:
        """Give a sign of life, and look at those of the others. Returns what is wrong."""
        try:
            self._store.set(f"beat/{self.rank}", json.dumps(time.time()))
        except RuntimeError:
            gone = RankError("the launcher of the ranks is gone", hint="start them once more, with --resume")
            return None if self._ending else gone
        silent = self._silent(seen)
        if silent is None:
            return None
        self._given_up.add(silent)
        return self._find()

    def _signalled(self, seconds: float) -> bool:
        """Whether SIGTERM comes in so many seconds."""
        ready, _, _ = select.select([self._wakeup], [], [], seconds)
        return bool(ready) and signal.SIGTERM in self._wakeup.recv(256)

    def _end(self) -> None:
        """End this rank, which was told to. The first one has some time to do so by itself, and to clean up."""
        if self._ending and self.rank:
            return
        if self.rank == 0:
            cause = self.error(_STOPPED)
            time.sleep(ENDING)
            if self._word("failed", 0) is None:
                os.write(self._console, f"error: {cause}\n".encode())
            os._exit(RankError.exit_code)
        self._speak_for_the_first()
        self._leave_word("stopped", "")
        os._exit(128 + signal.SIGTERM)

    def _speak_for_the_first(self) -> None:
        """Say what ended the run, where the first rank can say nothing any more and this is the first that can."""
        if self.begun and self._word("failed", 0) is None and all(self._dead(rank) for rank in range(self.rank)):
            os.write(self._console, f"error: {self.error()}\n".encode())

    def _silent(self, seen: dict[int, tuple[str | None, float]]) -> int | None:
        """A rank that has given no sign of life for too long; None where there is none."""
        now = time.monotonic()
        for rank in range(self.size):
            if self._word("left", rank) is not None:
                continue
            word = self._word("beat", rank)
            if rank not in seen or seen[rank][0] != word:
                seen[rank] = word, now
            elif now - seen[rank][1] > SILENCE:
                return rank
        return None

    def _find(self) -> RankError | None:
        """The rank whose end ends this run, as far as it can be known."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        if not self.begun:
            return next((error for rank in others if (error := self._before_it_joined(rank))), None)
        for rank in others:
            message = self._word("failed", rank)
            if message:
                return self._about(rank, f"failed: {message}")
        for rank in others:
            if self._dead(rank) and self._word("left", rank) is None:
                silent = rank in self._given_up
                return self._about(rank, "gives no sign of life" if silent else _KILLED)
        return None

    def _before_it_joined(self, rank: int) -> RankError | None:
        """What the log of a rank of this machine ends with, where that is an error."""
        log = self._log.with_name(f"rank-{rank}.log")
        with suppress(OSError):
            errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
            if errors:
                return RankError(f"rank {rank} failed: {errors[-1].removeprefix('error: ')}", hint=f"its log is {log}")
        return None

    def _about(self, rank: int, what: str) -> RankError:
        one = self._everyone[rank]
        first, _, rest = what.partition("\n")
        log = f"; its log is {one['log']}" if rank else ""
        return RankError(
            f"rank {rank} (process {one['pid']} on {one['host']}) {first}{log}",
            hint="\n".join(
                line for line in (rest, "the same command with --resume goes on from what was kept") if line
            ),
        )

    def _dead(self, rank: int) -> bool:
        """Whether a rank is given up, or has ended on this machine, other than because it was stopped."""
        if rank in self._given_up:
            return True
        one = self._everyone[rank]
        if one["host"] != socket.gethostname() or self._word("stopped", rank) is not None:
            return False
        try:
            return bool(psutil.Process(one["pid"]).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def _word(self, kind: str, rank: int) -> str | None:
        """What a rank has left word of; None where it has not, or nobody can know any more."""
        key = f"{kind}/{rank}"
        with suppress(RuntimeError):
            if self._store is not None and self._store.check([key]):
                return str(json.loads(self._store.get(key)))
        return None

    def _leave_word(self, kind: str, message: str) -> None:
        if self._store is not None:
            with suppress(RuntimeError):
                self._store.set(f"{kind}/{self.rank}", json.dumps(message))
