"""What people see while they wait: one bar in a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from quantaudit.common import display as shown
from quantaudit.common.display import duration, progress, speed, status_line
from quantaudit.common.progress import Snapshot, Stage

LONGEST = "measuring the rounding floor"


def snapshot(**changes: object) -> Snapshot:
    values = {
        "title": "measuring", "unit": "tokens", "stage_share": 0.451, "stage_seconds": 75.0, "rate": 512.3,
        "share": 0.31, "seconds": 100.0, "left": 222.0,
    }  # fmt: skip
    return Snapshot(**(values | changes))  # type: ignore[arg-type]


def interrupt(console: Console) -> None:
    """A job that is interrupted in its first stage."""
    with contextlib.suppress(KeyboardInterrupt), progress(console) as stages:
        stages("a", 1)
        raise KeyboardInterrupt


def test_a_line_says_percent_rate_and_time_left_of_the_whole() -> None:
    assert status_line(snapshot()) == "measuring: 45%, 1:15, 512 tokens/s (whole job: 31% after 1:40, 3:42 left)"


def test_before_anything_is_known_a_line_says_how_long_it_has_been() -> None:
    nothing = {"stage_share": None, "rate": None, "share": None, "left": None}
    assert status_line(snapshot(title="loading", **nothing)) == "loading: 1:15"


@pytest.mark.parametrize(
    ("rate", "text"), [(1234.4, "1,234 tokens/s"), (1.0, "1 tokens/s"), (0.25, "4.0 s/token"), (None, "")]
)
def test_below_one_a_second_it_is_seconds_each(rate: float | None, text: str) -> None:
    assert speed(snapshot(rate=rate)) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (605, "10:05"), (3661, "1:01:01")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_without_a_terminal_a_step_of_any_length_gives_a_line_at_every_beat(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(shown, "BEAT", 0.05)
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=80)
    with progress(console) as stages:
        stages.expect([Stage("one long step", 10.0), Stage("b", 1.0)])
        stages("one long step", 1, "steps")
        time.sleep(0.5)  # no call comes back meanwhile
        stages("b", 3)
    lines = raw.getvalue().decode(encoding).splitlines()
    assert lines[0].startswith("one long step (whole job: 0%")
    assert lines[-1].startswith("b: done in")
    beats = [line for line in lines if line.startswith("one long step: 0%, 0:0")]
    assert len(beats) >= 3
    assert all(" left)" in line for line in beats)
    assert "\x1b" not in raw.getvalue().decode(encoding)


def test_after_an_error_nothing_speaks_and_no_stage_is_called_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "BEAT", 0.05)
    file = io.StringIO()
    interrupt(Console(file=file))
    before = file.getvalue()
    time.sleep(0.2)
    assert file.getvalue() == before == "a\n"


@pytest.mark.parametrize(("encoding", "ascii_only"), [("utf-8", False), ("ascii", True)])
def test_a_terminal_of_80_columns_shows_one_bar_that_fits_and_is_left_clean(encoding: str, ascii_only: bool) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=file, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    assert console.options.ascii_only == ascii_only
    with progress(console) as stages:
        stages.expect([Stage(LONGEST, 5000.0), Stage("b", 100_000.0)])
        advance = stages(LONGEST, 10, "samples")
        time.sleep(0.15)
        advance()
        time.sleep(0.3)
    text = raw.getvalue().decode(encoding)
    drawn = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", text)]
    bars = [line for line in drawn if LONGEST in line]
    assert bars
    assert all(len(line) <= 80 for line in drawn)
    assert re.search(r"0%", bars[-1])
    assert re.search(r"\d+:\d\d left", bars[-1])
    assert re.search(r"\d samples/s|s/sample", bars[-1])
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is shown again
    assert not any(LONGEST in line for line in drawn[-1:])


def test_an_interrupt_leaves_the_terminal_with_its_cursor() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, legacy_windows=False)
    interrupt(console)
    assert file.getvalue().rfind("\x1b[?25h") > file.getvalue().rfind("\x1b[?25l")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
def test_a_closed_pipe_ends_nothing_and_shows_no_traceback() -> None:
    program = (
        "import time\nfrom quantaudit.cli import console\nfrom quantaudit.common import display\ndisplay.BEAT = .05\n"
        "with console.progress() as stages:\n"
        "    stages('a', 1)\n    time.sleep(.4)\n    console.say('word')\n    stages('b', 1)\n"
        "console.out.print('result')"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=write, check=False)
    os.close(write)
    assert (done.returncode, done.stdout) == (0, b"result\n")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
def test_results_that_nobody_reads_end_quietly() -> None:
    program = "from quantaudit.cli import console\nconsole.out.print('result')"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
