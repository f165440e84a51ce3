"""Locks between processes on what they write; one that a killed process left never blocks.

A lock is a file of `filelock` (flock on Linux and macOS, a locked region on Windows): the system lets go of it when its
process ends, however that happens. The file names its holder, and goes when it is released. Readers need none.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.errors import OutputError

if TYPE_CHECKING:
    from filelock import FileLock

PREFIX = ".quantaudit-"
"""Begins the names of all that this package keeps in a folder while it writes there."""
RESUME = "resume"
"""Ends the name of the folder that keeps what an interrupted run had finished."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What a file system without locks answers; a run there goes on without."""
_LONGEST = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that has a lock. since: local time, ISO 8601."""

    command: str
    pid: int
    host: str
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """As it was called."""
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(command=command, pid=os.getpid(), host=socket.gethostname(), since=since)

    def __str__(self) -> str:
        text = f"`{self.command[:_LONGEST]}`, process {self.pid} on {self.host[:_LONGEST]}, since {self.since[:40]}"
        return "".join(letter if letter.isprintable() else "?" for letter in text)


@contextmanager
def locked(lock: Path, *, what: Path, wait: float = 0.0) -> Iterator[None]:
    """Within the context no other process has the lock. what: the file or folder that it is about.

    Folders that are missing are made, and go again where they stay empty. Raises OutputError, with the name of the
    holder, where it is not free within `wait` seconds, and where the folder cannot be written.
    """
    missing = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    try:
        guard = _acquired(lock, what, wait)
        try:
            yield
        finally:
            if guard is not None:
                _release(guard, lock)
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _acquired(lock: Path, what: Path, wait: float) -> FileLock | None:
    """The lock, held; None on a file system that has none."""
    from filelock import FileLock, Timeout

    guard = FileLock(lock, fallback_to_soft=False, thread_local=False)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        guard.acquire(timeout=wait)
    except Timeout as error:
        raise OutputError(
            f"another run writes there: {holder_of(lock) or 'its name cannot be read'}",
            where=str(what),
            hint="wait for it to end, or write to another place",
        ) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise OutputError(
            f"cannot be written: {error.strerror or error}",
            where=str(what),
            hint="choose a folder that you may write to",
        ) from error
    with suppress(OSError):  # its name is a courtesy, for which a full disk has no room
        lock.write_text(json.dumps(asdict(Holder.this_process())), encoding="utf-8")
    return guard


def _release(guard: FileLock, lock: Path) -> None:
    """Let go, and leave no file behind."""
    if os.name == "nt":  # which removes no file that is open
        guard.release()
        with suppress(OSError):
            lock.unlink()
        return
    # While it is held: whoever waits for this file notices that it has no name any more, and makes a new one.
    with suppress(OSError):
        lock.unlink()
    guard.release()


def holder_of(lock: Path) -> Holder | None:
    """Who has a lock, as it says itself; None where that cannot be read."""
    try:
        return Holder(**json.loads(lock.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
