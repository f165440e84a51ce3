"""Units of work that an interrupted run had finished, kept next to its output: what --resume reads.

A unit is what takes time and gives little: a batch, a fused group, a sample under one recipe. It is kept in an SQLite
file as soon as it is finished, so that a process may be killed at any moment. Stages and units are named in the order
of the program, which a resumed run repeats: what it finds finished it takes over, bit for bit, and computes the rest.
Nothing is taken over from a run of other inputs, settings, code or libraries. Each rank keeps what it finished itself.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from time import perf_counter
from typing import Any

from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.locks import RESUME
from quantaudit.common.ranks.team import team
from quantaudit.errors import OutputError

SHARE = 0.02
"""Part of the time that may go into keeping a unit that grows, such as the statistics so far."""


def _file_name() -> str:
    """What this rank keeps its units in."""
    rank = team().rank
    return f"units-{rank}.sqlite" if rank else "units.sqlite"


class Units:
    """Finished units of one stage of a run. This one keeps nothing: that of a run which cannot be resumed."""

    def get(self, key: str) -> bytes | None:
        """What a unit gave; None where it is not finished."""
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep what a unit gave, in place of what is there of its name."""

    def get_json(self, key: str) -> Any:
        """The same for numbers and names, of which every bit stays; None where it is not finished."""
        data = self.get(key)
        return None if data is None else json.loads(data)

    def put_json(self, key: str, value: Any) -> None:
        """Keep numbers and names."""
        self.put(key, json.dumps(value).encode())

    @property
    def kept(self) -> bool:
        """Whether anything is kept."""
        return False


@dataclass(slots=True)
class Pace:
    """When a unit that grows is kept again: so that keeping it takes SHARE of the time at most."""

    last: float = field(default_factory=lambda: perf_counter())
    cost: float = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return perf_counter() - self.last >= self.cost / SHARE

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """The context in which it is kept, whose time is taken."""
        start = perf_counter()
        yield
        self.last = perf_counter()
        self.cost = self.last - start


class RunState:
    """The finished units of a run that writes to one place. Gone when the run is done.

    resume: whether to go on from an interrupted run; else it is said that there is one, and forgotten when this one
    starts to work. say: takes lines.
    """

    def __init__(self, output: Output, *, resume: bool, say: Callable[[str], None]) -> None:
        self._folder = output.hidden(RESUME)
        self._output, self._resume, self._say = output, resume, say
        self._stages: Counter[str] = Counter()
        self._file: sqlite3.Connection | None = None
        self._process = 0
        self._identity: dict[str, str] = {}
        file = self._folder / _file_name()
        if file.is_file() and not resume:
            when = datetime.fromtimestamp(file.stat().st_mtime).astimezone()
            say(
                f"a run was interrupted here at {when:%Y-%m-%d %H:%M}: --resume goes on from there; "
                "this one starts at the beginning"
            )
        elif resume and not file.is_file():
            say("no interrupted run to resume: this one starts at the beginning")

    @contextmanager
    def running(self, identity: Mapping[str, Any]) -> Iterator[None]:
        """Within the context stages find what was finished, and keep what they finish.

        identity: all that results depend on, by name; units of a run that differs in any of it are dropped. Raises
        OutputError where nothing can be kept.
        """
        try:
            with self._as_outputs():
                self._open({name: json.dumps(value, sort_keys=True, default=str) for name, value in identity.items()})
        except OutputError:
            self._close()
            if not self._resume:
                self._forget()
            raise
        token = _RUNNING.set(self)
        team().at_end(self.done)
        try:
            yield
        except BaseException:
            with suppress(sqlite3.Error):
                if self._count():
                    self._say("what was finished is kept: --resume goes on from there")
            raise
        finally:
            _RUNNING.reset(token)
            self._close()

    def done(self) -> None:
        """The output is written: forget everything, on all ranks."""
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget(self) -> None:
        """Forget what earlier runs have kept; the first rank forgets it for all, before any begins."""
        if team().rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._drop()

    def _drop(self) -> None:
        """Forget what this rank has kept."""
        for ending in ("", "-wal", "-shm"):
            (self._folder / f"{_file_name()}{ending}").unlink(missing_ok=True)

    def units(self, stage: str) -> Units:
        """Those of a stage: the second of its name has others than the first."""
        if self._process != os.getpid():
            self._reopen()
        self._stages[stage] += 1
        return _KeptUnits(self, f"{stage} {self._stages[stage]}/")

    def get(self, key: str) -> bytes | None:
        """What is kept of a unit."""
        assert self._file is not None
        with self._as_outputs():
            row = self._file.execute("SELECT data FROM units WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, key: str, data: bytes) -> None:
        """Keep a unit."""
        assert self._file is not None
        with self._as_outputs():
            self._file.execute("INSERT OR REPLACE INTO units VALUES (?, ?)", (key, data))

    def _open(self, identity: Mapping[str, str]) -> None:
        if not self._resume:
            self._forget()
        team().from_first(None)  # from here on every rank keeps something there
        differing = self._connect(identity)
        if differing is not None:
            self._say(f"the interrupted run was of other {differing}: this one starts at the beginning")
            self._close()
            self._drop()
            self._connect(identity)
        elif self._resume and (count := self._count()):
            self._say(f"going on after {count:,} finished units of the interrupted run, which take no time again")

    def _reopen(self) -> None:
        """In a fork, which keeps what it finishes in a file of its own: its parent's it may not even close."""
        _INHERITED.append(self._file)
        if self._connect(self._identity) is not None:
            self._close()
            self._drop()
            self._connect(self._identity)
        team().at_end(self._close)

    def _connect(self, identity: Mapping[str, str]) -> str | None:
        """Open the file. Returns in what a run that is kept there differs; None where it is this one, or new."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process, self._identity = os.getpid(), dict(identity)
        self._file = sqlite3.connect(self._folder / _file_name(), isolation_level=None, check_same_thread=False)
        try:
            # One process alone, which holds the run's lock; safe against its end without a wait for the disk.
            for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
                self._file.execute(f"PRAGMA {pragma}")
            self._file.execute("CREATE TABLE IF NOT EXISTS units (key TEXT PRIMARY KEY, data BLOB)")
            self._file.execute("CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT)")
            before = dict(self._file.execute("SELECT name, value FROM identity"))
            if not before:
                self._file.executemany("INSERT INTO identity VALUES (?, ?)", identity.items())
                return None
        except sqlite3.DatabaseError as error:
            if "malformed" in str(error) or "not a database" in str(error):
                return "content, which cannot be read"
            raise
        names = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        return ", ".join(names) or None

    def _count(self) -> int:
        assert self._file is not None
        return int(self._file.execute("SELECT count(*) FROM units").fetchone()[0])

    def _close(self) -> None:
        """Let the file go; where it holds nothing, it goes itself."""
        if self._file is None:
            return
        empty = False
        with suppress(sqlite3.Error):
            empty = not self._count()
        with suppress(sqlite3.Error):
            self._file.close()
        self._file = None
        if empty:
            self._drop()
            with suppress(OSError):  # other ranks may have kept something
                self._folder.rmdir()

    @contextmanager
    def _as_outputs(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise OutputError(
                f"what a run has finished cannot be kept: {reason}",
                where=str(self._output.path),
                hint="make room there, or write to another place; what was there is unchanged",
            ) from error


class _KeptUnits(Units):
    def __init__(self, state: RunState, prefix: str) -> None:
        self._state, self._prefix = state, prefix

    def get(self, key: str) -> bytes | None:
        return self._state.get(self._prefix + key)

    def put(self, key: str, data: bytes) -> None:
        self._state.put(self._prefix + key, data)

    @property
    def kept(self) -> bool:
        return True


_INHERITED: list[sqlite3.Connection | None] = []
"""Connections of the process that this one is a fork of."""
NO_UNITS = Units()
"""Of what cannot be resumed."""
_RUNNING: ContextVar[RunState | None] = ContextVar("running", default=None)


def units_of(stage: str) -> Units:
    """Finished units of a stage of the run that is under way; those of a run that keeps none, where it cannot resume.

    To be called once a stage, in the order of the program.
    """
    running = _RUNNING.get()
    return NO_UNITS if running is None else running.units(stage)
