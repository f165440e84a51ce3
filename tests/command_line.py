"""The command line, run in this process."""

from __future__ import annotations

import sys

import pytest

from quantaudit import cli

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture | None, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command; the streams are empty without a capture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantaudit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    captured = capsys.readouterr() if capsys else ("", "")
    return int(stop.value.code or 0), captured[0], captured[1]
