"""An error on the command line is short, whatever was given."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["atlas", "a", "b", "--out", "s"], ["quantaudit atlas: takes one DIR, and was given b too", "give one DIR"]),
        (
            ["render", "a", "b", "c", "--out", "s"],
            ["quantaudit render: takes one CARD, and was given b c too", "give one CARD"],
        ),
        (["atlas", "a", "--bogus"], ["quantaudit atlas: no such option: --bogus", "`quantaudit atlas --help`"]),
        (["atlas", "--out", "s"], ["quantaudit atlas: missing argument 'DIR'", "`quantaudit atlas --help`"]),
        (["atlas", "a", "--out"], ["option '--out' requires an argument"]),
        (["plan", "m", "--ranks", "0"], ["--ranks: ", "`quantaudit plan --help`"]),
        (["nothing"], ["no such command 'nothing'", "`quantaudit --help`"]),
    ],
)
def test_what_the_parser_refuses_is_said_as_everything_else(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert [part for part in said if part not in err] == []
    assert "unexpected" not in err.lower()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["of the device", "of the processor"],
)
def test_want_of_memory_is_said_with_what_takes_less(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("quantaudit.common.files.check_directory", fails)
    code, out, err = run(capsys, "report", "demo")
    assert (code, out) == (2, "")
    assert err.startswith("error: not enough memory")
    assert "--max-length" in err
    assert "unexpected" not in err


def test_nothing_at_all_shows_the_help_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert code == 2
    assert "Usage:" in out + err
    assert "error" not in err
