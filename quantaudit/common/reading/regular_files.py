"""The bytes of regular files, up to a size. Pipes, devices and sockets are refused before they are opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

RECIPE_BYTES = 4 << 20
"""Of a recipe or a policy: a recipe that ignores 50,000 modules by name has 3 MiB."""
CONFIG_BYTES = 64 << 20
"""Of a configuration: those that list every module that is not quantized have a few MiB."""
CARD_BYTES = 1 << 30
"""Of a card, a simulation or an index of shards: the index of a model with 100,000 tensors has 10 MiB."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class UnreadableError(OSError):
    """A file that is not read for what it is. strerror: the reason, and the limit where one is passed."""

    def __str__(self) -> str:
        return str(self.strerror)


def special_kind(path: Path) -> str | None:
    """What a path is, such as `a pipe`, where that is neither a regular file nor a folder; links are followed.

    None where it is a file or a folder, or does not exist.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        return "a link that leads to itself" if getattr(error, "errno", None) == errno.ELOOP else None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _kind(mode)


def special_inside(folder: Path) -> tuple[Path, str] | None:
    """The first path in a folder, at any depth, that is a pipe, a device or a socket, and what it is; None without."""
    found = ((path, special_kind(path)) for path in sorted(folder.rglob("*")))
    return next(((path, kind) for path, kind in found if kind is not None), None)


def check_regular(path: Path) -> int:
    """The size of a regular file in bytes. Raises OSError where it is missing, UnreadableError where it is no file.

    Opening a pipe waits for a writer that may never come, and a device may never end.
    """
    try:
        status = path.stat()
    except ValueError as error:  # a null character in the path
        raise UnreadableError(errno.EINVAL, f"no path: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError(errno.EINVAL, f"{_kind(status.st_mode)}, not a file")
    return status.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file. Raises OSError, of it UnreadableError above `limit` bytes."""
    size = check_regular(path)
    if size > limit:
        raise UnreadableError(errno.EFBIG, f"{size:,} bytes, and at most {limit:,} are read")
    # Between the check and the opening the file may have become a pipe; then this waits for nobody.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnreadableError(errno.EFBIG, f"more than the {limit:,} bytes that are read")
    return data


def read_text(path: Path, limit: int) -> str:
    """The content of a regular UTF-8 file. Raises OSError and UnicodeDecodeError."""
    return read_bytes(path, limit).decode("utf-8")


def _kind(mode: int) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
