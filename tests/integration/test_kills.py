"""A report, advice and a saved checkpoint, each killed at a seeded moment; `make kills` kills every verb many times."""

from __future__ import annotations

import subprocess
import sys


def test_killed_commands_leave_the_old_or_the_new_and_the_next_run_ends_in_the_new() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "3", "7"], capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "3 kills, 0 faults" in done.stdout
