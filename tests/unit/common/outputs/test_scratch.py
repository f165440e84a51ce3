"""A scratch folder goes with its context, and after a kill with the next run; never that of a run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from quantaudit.common.outputs.scratch import scratch_folder

HOLD = """
import sys, time
from quantaudit.common.outputs.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "weights").write_bytes(b"w")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_goes_with_its_context(place: Path) -> None:
    with scratch_folder() as one, scratch_folder() as other:
        assert one != other
        assert one.parent == place
        (one / "a").write_text("")
    assert list(place.iterdir()) == []


def test_one_of_a_killed_process_goes_and_one_of_a_running_process_stays(place: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    with scratch_folder():
        assert (left / "weights").exists()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (left / "weights").exists()
    with scratch_folder():
        assert not left.exists()
    assert list(place.iterdir()) == []


def test_what_only_has_its_name_is_left_alone(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "theirs").write_text("")
    (place / "quantaudit-scratch-link").symlink_to(elsewhere)
    (place / "quantaudit-scratch-file").write_text("")
    with scratch_folder():
        pass
    assert (elsewhere / "theirs").exists()
    assert (place / "quantaudit-scratch-file").exists()
