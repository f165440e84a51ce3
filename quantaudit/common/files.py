"""Files that appear whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.file_set import file_set
from quantaudit.common.outputs.locks import PREFIX, RESUME
from quantaudit.errors import OutputError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`: a reader finds the old file or the new one, never a part. Raises OutputError."""
    try:
        with file_set(path.parent) as files:
            files.write(path.name, data)
    except OutputError as error:
        raise OutputError(error.message, where=str(path), hint=error.hint) from error


def write_text(path: Path, text: str) -> None:
    """The same with UTF-8 `text`."""
    write_bytes(path, text.encode("utf-8"))


def check_directory(path: Path, *, force: bool, option: str = "--out", resume: bool = False) -> None:
    """Make sure, before hours are spent, that files can be written under `path`; nothing is left behind.

    resume: whether an interrupted run is looked for there. Raises OutputError when it is a file, cannot be created or
    written, or holds files and `force` is off.
    """
    if path.is_dir() and any(not child.name.startswith(PREFIX) for child in path.iterdir()) and not force:
        raise OutputError(
            "folder exists and is not empty",
            where=str(path),
            hint=_remedy(Output(option=option, path=path, folder=True), resume),
        )
    check_writable(path, option=option)


def check_file(path: Path, *, force: bool, resume: bool = False) -> None:
    """The same for a single file: raises OutputError when it is a folder, exists without `force`, or is unwritable."""
    if path.is_dir():
        raise OutputError("is a folder", where=str(path), hint="give a file with --out")
    if path.exists() and not force:
        raise OutputError("file exists", where=str(path), hint=_remedy(Output(option="--out", path=path), resume))
    check_writable(path.parent)


def _remedy(output: Output, resume: bool) -> str:
    if resume and not output.hidden(RESUME).exists():
        return f"no interrupted run is kept there: --force starts again, or choose another {output.option}"
    return f"add --force, or choose another {output.option}"


def check_writable(path: Path, *, option: str = "--out") -> None:
    """Probe the nearest existing folder at or above `path` with a temporary file. Raises OutputError."""
    absolute = path.absolute()
    existing = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=PREFIX):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            hint=f"choose a folder that you may write to with {option}",
        ) from error
