"""Folders for the time of a run, outside of any output; those of killed runs are removed by the next one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from quantaudit.common.outputs.locks import locked
from quantaudit.errors import OutputError

_PREFIX = "quantaudit-scratch-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder where temporary files belong, gone with the context. Raises OutputError where none can be made."""
    place = Path(tempfile.gettempdir())
    _remove_stale(place)
    folder = place / f"{_PREFIX}{os.getpid()}-{uuid4().hex[:12]}"
    # Locked before it exists: whoever finds a folder whose lock is free knows that its process is gone.
    with locked(_lock(folder), what=folder):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError, OutputError):  # one of a run that goes on, or of another user
            if folder.is_dir() and not folder.is_symlink() and _is_ours(folder):
                with locked(_lock(folder), what=folder):
                    shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")
