"""An error on the command line is short, whatever was given."""

from __future__ import annotations

import pytest

from tests.command_line import run

LONG = "9" * 5000


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["report", "demo", "--memory-budget", f"{LONG}GiB"], "--memory-budget 999"),
        (["report", "demo", "--single-groups", LONG], "--single-groups 999"),
        (["report", "demo", "--device", f"cuda:{LONG}"], "--device cuda:999"),
    ],
)
def test_an_option_of_any_length_is_named_by_its_beginning(
    capsys: pytest.CaptureFixture[str], arguments: list[str], cause: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert cause in err
    assert "unexpected" not in err
    assert len(err) < 1500
