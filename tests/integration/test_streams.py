"""Standard streams as shells leave them: full, closed, ended early, without Unicode. Exit codes stay what they mean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import save_checkpoint
from tests.families import family_model

EXPLAIN = ("gate", "--explain", "QA501")
MISTAKE = ("gate", "recipe\x1b[2J\u202e.txt", "--card", "card.json")


def shell(line: str, argv: tuple[str, ...], **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which "$@" is the command; its exit code is that of the command."""
    script = ["bash", "-c", f"set -o pipefail; {line}", "bash", sys.executable, "-m", "quantaudit", *argv]
    return subprocess.run(script, capture_output=True, env={**os.environ, **environment}, timeout=120)


@pytest.mark.parametrize(
    ("line", "argv", "code", "words"),
    [
        ('"$@" > /dev/full', EXPLAIN, 2, b"standard output: results cannot be written: no space left on device"),
        ('"$@" >&-', EXPLAIN, 2, b"standard output: results cannot be written: it is closed"),
        ('"$@" > /dev/full', ("--version",), 2, b"cannot be written"),
        ('"$@" > /dev/full', ("--help",), 2, b"cannot be written"),
        ('"$@" | true', EXPLAIN, 141, b""),
        ('"$@" 2> /dev/full', EXPLAIN, 0, b""),
        ('"$@" 2>&-', EXPLAIN, 0, b""),
        ('"$@" <&-', EXPLAIN, 0, b""),
        ('"$@" <&- 2>&-', MISTAKE, 2, b""),
        ('"$@" 2> /dev/full', MISTAKE, 2, b""),
        ('"$@" 2>&1 >&- <&- | cat >&2', MISTAKE, 2, b"not a recipe file"),
        ('"$@"', MISTAKE, 2, b"recipe\\x1b[2J\\u202e.txt: not a recipe file"),
    ],
)
def test_a_stream_that_fails_has_its_exit_code_and_one_clear_line(
    line: str, argv: tuple[str, ...], code: int, words: bytes
) -> None:
    if line.endswith("| true"):  # the reader is gone before anything is written
        line = '"$@" > >(exec true)'
    done = shell(line, argv)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert b"unexpected" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("name", ["9" * 5000 + ".json", "loop.json"])
def test_a_path_that_no_system_call_takes_is_a_mistake_of_its_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop.json").symlink_to("loop.json")
    done = shell('"$@"', ("render", str(tmp_path / name), "--out", str(tmp_path / "new")))
    assert done.returncode == 2
    assert b"unexpected" not in done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("argv", [EXPLAIN, MISTAKE, ("--help",), ("report", "--help")])
def test_a_terminal_without_unicode_or_width_is_enough(argv: tuple[str, ...]) -> None:
    done = shell('"$@"', argv, PYTHONIOENCODING="ascii", LC_ALL="C", COLUMNS="1", TERM="dumb", PYTHONUTF8="0")
    assert done.returncode == (2 if argv == MISTAKE else 0)
    assert b"unexpected" not in done.stderr
    assert (done.stdout + done.stderr).isascii()


@pytest.mark.parametrize(
    "program",
    [
        "from quantaudit.cli import main; main()",
        "import sys, quantaudit; quantaudit.measure(sys.argv[2], samples=2, max_length=8, progress=False)",
    ],
    ids=["command line", "Python"],
)
def test_no_library_logs_to_where_results_go(program: str, tmp_path: Path) -> None:
    """Experts are looked at with llm-compressor, which logs to stdout from its import on."""
    folder = save_checkpoint(tmp_path / "mixture", family_model("qwen3-moe"))
    environment = {name: value for name, value in os.environ.items() if name != "LLM_COMPRESSOR_LOG_DISABLED"}
    done = subprocess.run(
        [sys.executable, "-c", program, "sites", str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert "WARNING" not in done.stdout + done.stderr
    assert not done.stdout or done.stdout.startswith("observed tensors")
