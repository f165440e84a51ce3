"""What a command will write: checked against what it reads before any work starts, and locked until it ends.

An output is never an input of the same command, in whichever spelling; nor a device, a pipe or a socket; nor a symbolic
link, whose target may be anywhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from quantaudit.common.outputs.file_set import finish, remove_leftovers
from quantaudit.common.outputs.locks import PREFIX, locked
from quantaudit.errors import OutputError

_KINDS = {
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A file, or a folder of files, that a command writes. option: how it was given.

    writes: names of the files in a folder, `assets/` for all below; None where they are not known, or it is a file.
    """

    option: str
    path: Path
    folder: bool = False
    writes: tuple[str, ...] | None = None

    def hidden(self, name: str) -> Path:
        """Where something of ours is kept while the command runs: inside a folder, next to a file."""
        if self.folder:
            return self.path / f"{PREFIX}{name}"
        return self.path.with_name(f".{self.path.name}{PREFIX}{name}")


_CLAIMED: ContextVar[tuple[Output, ...]] = ContextVar("claimed", default=())
"""Outputs of the command that runs."""


@contextmanager
def claimed(outputs: Sequence[Output], inputs: Mapping[str, Path]) -> Iterator[None]:
    """Within the context these outputs are this process's alone. inputs: files and folders that are read, by option.

    Removes what killed runs left of them. Raises OutputError where an output is an input, is of another kind than a
    file or a folder, or is being written by another run, which it names.
    """
    inputs = {option: path for option, path in inputs.items() if _exists(path)}
    for output in outputs:
        _check_kind(output)
    _check_apart(outputs)
    for output in outputs:
        _check_inputs(output, inputs)
    for path in inputs.values():
        finish(path if path.is_dir() else path.parent)
    with ExitStack() as stack:
        for output in outputs:
            stack.enter_context(locked(output.hidden("run.lock"), what=output.path))
            remove_leftovers(output.path, folder=output.folder)
        token = _CLAIMED.set(tuple(outputs))
        stack.callback(_CLAIMED.reset, token)
        yield


def check_inputs(inputs: Mapping[str, Path]) -> None:
    """Check more inputs, found on the way, against what the command that runs will write. Raises OutputError."""
    for output in _CLAIMED.get():
        _check_inputs(output, inputs)


def _check_kind(output: Output) -> None:
    path = output.path
    if not output.folder and not path.name:  # `.`, `/`, or nothing
        raise _refusal(output, "is a folder", "give a file")
    if path.is_symlink():
        raise _refusal(output, f"is a symbolic link to {os.readlink(path)}", "give the place itself")
    if not path.exists() or path.is_file() or path.is_dir():
        return
    mode = path.stat().st_mode
    kind = next((kind for test, kind in _KINDS.items() if test(mode)), "no file")
    raise _refusal(output, f"is {kind}", f"give a {'folder' if output.folder else 'file'}")


def _check_apart(outputs: Sequence[Output]) -> None:
    for number, output in enumerate(outputs):
        for other in outputs[:number]:
            if _is_same(output.path, other.path):
                raise _refusal(output, f"is what {other.option} writes too", "give two places")


def _check_inputs(output: Output, inputs: Mapping[str, Path]) -> None:
    for option, path in inputs.items():
        if not _exists(path):
            continue
        problem = _folder_problem(output, path) if output.folder else _file_problem(output, path)
        if problem is not None:
            raise _refusal(output, f"would overwrite {problem} {option} {path}, an input of this command", "")


def _file_problem(output: Output, read: Path) -> str | None:
    """How a file to write is one that is read; None where it is not."""
    if not output.path.exists():
        return None
    if _is_same(output.path, read):
        return "the file of"
    if read.is_dir() and _real(output.path).is_relative_to(_real(read)):
        return "a file of"
    if read.is_dir() and any(_is_same(output.path, file) for file in read.iterdir() if file.is_file()):
        return "a file of"
    return None


def _folder_problem(output: Output, read: Path) -> str | None:
    """How a folder to write to has something in it that is read, and would be replaced; None where not."""
    folder = _real(output.path)
    if read.is_dir():
        if _real(read) == folder:
            return "the model itself:" if _holds_a_model(read) else "the folder of"
        return "the folder around" if _real(read).is_relative_to(folder) else None
    if output.writes is None:
        return "the folder around" if _real(read).is_relative_to(folder) or _real(read.parent) == folder else None
    for name in output.writes:
        place = output.path / name
        if name.endswith("/"):
            if _real(read).is_relative_to(_real(place)):
                return f"{name} around"
        elif place.exists() and _is_same(place, read):
            return f"its own {name}, which is"
    return None


def _holds_a_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, by whichever spelling, symbolic or hard link."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return _real(one) == _real(other)


def _exists(path: Path) -> bool:
    """Whether an input is a path at all: a Hub id, or a name that is no path, is not."""
    try:
        return path.exists()
    except OSError:
        return False


def _real(path: Path) -> Path:
    return path.expanduser().resolve()


def _refusal(output: Output, problem: str, hint: str) -> OutputError:
    return OutputError(problem, where=f"{output.option} {output.path}", hint=hint or "choose another place")
