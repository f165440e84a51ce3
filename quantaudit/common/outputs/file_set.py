"""Files that change as one: afterwards a reader finds the old set or the new one, whenever a writer was killed.

A set is staged whole in a hidden folder inside its own, on the same file system, and flushed to disk. One rename of
that folder decides: before it nothing has happened, after it every file has only to be renamed to its place. A process
that is killed in between leaves a decided folder, which the next command that reads or writes there brings to its end
(`finish`). Files of others are never moved.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from quantaudit.common.outputs.locks import PREFIX, locked
from quantaudit.errors import OutputError

STAGED = f"{PREFIX}staged"
DECIDED = f"{PREFIX}decided"
WRITING = f"{PREFIX}writing.lock"
"""Held for as long as files of a folder are staged and renamed: short, but for checkpoints."""
PATIENCE = 600.0
"""Seconds that another process is waited for while it writes to the same folder."""
_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_FILES, _PLAN = "files", "plan.json"


class FileSet:
    """Files of one folder that are about to change together. Paths are relative to the folder, with `/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.staged = folder / STAGED / _FILES
        """Folder in which the new files are made; others than `write` may make files in it too."""
        self._removed: list[str] = []
        self._outside: list[tuple[Path, Path]] = []

    def write(self, name: str, data: bytes) -> None:
        """Stage a file."""
        target = self.staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(target, data)

    def write_outside(self, path: Path, data: bytes) -> None:
        """Stage a file that belongs to the set and lies in another folder. Its last part must not be a link."""
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = _staged_outside(path)
        self._outside.append((staged, path))
        _write_whole(staged, data)

    def remove(self, name: str) -> None:
        """Remove a file with the change, if it is there and the new set has none of its name."""
        self._removed.append(name)

    def commit(self) -> None:
        """Put everything in its place."""
        names = _files_in(self.staged)
        for name in names:
            _check_place(self.folder, name)
        if len(names) == 1 and not self._outside and not self._removed:  # one rename, which is all or nothing
            _move(self.staged / names[0], self.folder / names[0])
            _flush(self.folder)
            return
        for name in names:
            _flush(self.staged / name)
        plan = {"remove": sorted({*self._removed} - {*names}), "outside": [str(path) for _, path in self._outside]}
        _write_whole(self.folder / STAGED / _PLAN, json.dumps(plan).encode())
        os.rename(self.folder / STAGED, self.folder / DECIDED)
        _flush(self.folder)
        _carry_out(self.folder)

    def discard(self) -> None:
        """Forget what was staged."""
        shutil.rmtree(self.folder / STAGED, ignore_errors=True)
        if not (self.folder / DECIDED).exists():
            for staged, _ in self._outside:
                staged.unlink(missing_ok=True)


@contextmanager
def file_set(folder: Path, *, option: str = "--out") -> Iterator[FileSet]:
    """A set to fill, which takes its place when the context is left; nothing changes where that raises.

    Waits for others that write to the folder, and removes what killed ones left. Raises OutputError, also for a disk
    that is full.
    """
    with locked(folder / WRITING, what=folder, wait=PATIENCE):
        files = FileSet(folder)
        try:
            _finish(folder)
            (folder / STAGED).mkdir()
            files.staged.mkdir()
            yield files
            files.commit()
        except OSError as error:
            if not _is_about(error, folder):
                raise
            raise _unwritten(error, folder, files, option) from error
        finally:
            files.discard()


def finish(folder: Path) -> None:
    """Bring a change of a folder to its end that a killed process had decided. Nothing where there is none.

    Raises OutputError where that is not possible, as the files are then of two runs.
    """
    if (folder / DECIDED).is_dir():
        with locked(folder / WRITING, what=folder, wait=PATIENCE):
            try:
                _finish(folder)
            except OSError as error:
                raise OutputError(
                    f"a run was killed while it replaced these files, and they cannot be put in place now: "
                    f"{error.strerror or error}",
                    where=str(folder),
                    hint="read it once from where it can be written; or delete the folder, and write it again",
                ) from error


def remove_leftovers(path: Path, *, folder: bool) -> None:
    """Finish or forget what killed processes were writing to a folder, or to a file and the folder that it lies in.

    The caller is the only one who writes there. Raises OutputError as `finish` does.
    """
    inside = path if folder else path.parent
    if any((inside / name).is_dir() for name in (STAGED, DECIDED)):
        with file_set(inside):
            pass
    if not folder:
        _staged_outside(path).unlink(missing_ok=True)


def _finish(folder: Path) -> None:
    """The lock is held, so that whatever is staged here belongs to a process that is gone."""
    shutil.rmtree(folder / STAGED, ignore_errors=True)
    if (folder / DECIDED).is_dir():
        _carry_out(folder)


def _carry_out(folder: Path) -> None:
    """Rename what is decided to its place; may be interrupted, and called again, at any point.

    What a plan says may come from anywhere: it removes and replaces inside the folder alone, and outside only from a
    staged file of ours to its own place.
    """
    decided = folder / DECIDED
    plan = _plan(decided / _PLAN)
    for name in plan["remove"]:
        if _is_inside(folder, name):
            with suppress(FileNotFoundError, IsADirectoryError):
                (folder / name).unlink()
    for name in sorted(_files_in(decided / _FILES), key=lambda name: (name == "card.json", name)):
        _check_place(folder, name)
        _move(decided / _FILES / name, folder / name)
    for name in plan["outside"]:
        path = Path(name)
        with suppress(FileNotFoundError):
            os.replace(_staged_outside(path), path)
    _flush(folder)
    shutil.rmtree(decided)


def _plan(path: Path) -> dict[str, list[str]]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        return {key: [str(name) for name in plan[key]] for key in ("remove", "outside")}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {"remove": [], "outside": []}  # its last act was under way: all files are in place


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name is one below the folder, and no link leads out of it."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        return False
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())


def _check_place(folder: Path, name: str) -> None:
    """Raises OutputError where a file cannot take its place: before anything is decided."""
    target = folder / name
    problem = None
    if not _is_inside(folder, name):
        problem = "its folder is a link to another place"
    elif target.is_dir() and not target.is_symlink():
        problem = "is a folder"
    elif target.parent.is_dir() and not os.access(target.parent, os.W_OK):
        problem = "cannot be written: Permission denied"
    if problem is not None:
        raise OutputError(problem, where=str(target), hint="remove it, or choose another place with --out")


def _files_in(folder: Path) -> list[str]:
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return [path.relative_to(folder).as_posix() for path in found]


def _move(staged: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # of a file that is replaced the permissions stay; a link has none
        if not target.is_symlink():
            staged.chmod(stat.S_IMODE(target.stat().st_mode))
    os.replace(staged, target)


def _staged_outside(path: Path) -> Path:
    return path.with_name(f".{path.name}{STAGED}")


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file that has its name only once it is whole and on disk. The mode is that of any new file."""
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to disk; not where it cannot open them so."""
    with suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether an error comes from writing the set, and not from whatever else was done meanwhile."""
    named = [Path(str(name)) for name in (error.filename, error.filename2) if name is not None]
    if not named:  # as for a write to a file that is open
        return error.errno in _OF_DISKS
    return any(path == folder or folder in path.parents for path in named)


def _unwritten(error: OSError, folder: Path, files: FileSet, option: str) -> OutputError:
    reason = error.strerror or str(error)
    if (folder / DECIDED).exists():
        return OutputError(
            f"cannot be written to the end: {reason}",
            where=str(folder),
            hint="the new files are kept there; the next command that reads the folder puts them in place",
        )
    return OutputError(
        f"cannot be written: {reason}; what was there is unchanged",
        where=str(folder),
        hint=f"make room there, or choose another place {'with' if option.startswith('-') else 'for the'} {option}",
    )
