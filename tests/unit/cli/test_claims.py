"""Everything that a verb which writes reads and writes is known where outputs are checked and locked."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from quantaudit import cli
from quantaudit.cli.claims import INPUTS, OUTPUTS, claiming, inputs_of, outputs_of

VERBS = {command.name or "": command.callback for command in cli.app.registered_commands if command.callback}
WRITING = sorted(name for name, verb in VERBS.items() if OUTPUTS.keys() & inspect.signature(verb).parameters.keys())
NO_FILES = {"dtype", "device", "revision", "arithmetic", "special_tokens", "score", "single_groups", "schemes"} | {
    *("experts", "attention", "shard", "scheme", "observer", "pipeline", "as_good_as", "memory_budget"),
    *("fail_on", "output", "push", "scheme_set", "max_bytes", "verdict", "minimize"),
}
"""Parameters that are text, and name no file."""


def test_the_verbs_that_write_are_these() -> None:
    writing = "advise atlas compare insert measure merge render report scales simulate verify"
    assert writing.split() == WRITING


@pytest.mark.parametrize("verb", WRITING)
def test_every_parameter_that_may_name_a_file_is_an_input_or_an_output(verb: str) -> None:
    hints = {name: item.annotation for name, item in inspect.signature(VERBS[verb]).parameters.items()}
    naming = {name for name, hint in hints.items() if {Path, str} & types_in(hint)}
    assert naming - INPUTS.keys() - OUTPUTS.keys() - NO_FILES == set()


def types_in(hint: Any) -> set[Any]:
    """All types that a hint is made of."""
    return {hint}.union(*map(types_in, get_args(hint))) if get_origin(hint) or get_args(hint) else {hint}


def test_checkpoints_that_are_compared_are_read_whole(tmp_path: Path) -> None:
    given = {"cards": [str(tmp_path)], "logits": True, "corpus": "builtin"}
    assert inputs_of(given) == {"MODEL": tmp_path, "--corpus": Path("builtin")}
    assert inputs_of(given | {"logits": False})["CARD"] == tmp_path / "card.json"


def test_a_verb_that_writes_nothing_is_left_alone() -> None:
    def run(model: str) -> None: ...

    assert claiming(run) is run


def test_what_is_given_is_found() -> None:
    given: dict[str, Any] = {
        "recipe": Path("r.yaml"),
        "card": Path("c/card.json"),
        "profile": None,
        "model": "org/name",
        "corpus": "t.jsonl:::column",
        "recipes": [Path("a.yaml"), Path("b.yaml")],
        "out": Path("new"),
        "save": None,
    }
    assert inputs_of(given) == {
        "RECIPE": Path("r.yaml"),
        "--card": Path("c/card.json"),
        "the card's profile": Path("c/profile.safetensors"),
        "MODEL": Path("org/name"),
        "--corpus": Path("t.jsonl"),
        "--recipe": Path("a.yaml"),
        "--recipe 2": Path("b.yaml"),
    }
    assert [(output.option, output.path, output.folder) for output in outputs_of("advise", given)] == [
        ("--out", Path("new"), False)
    ]
    (report,) = outputs_of("report", {"out": None, "model": "org/name"})
    assert (report.path, report.folder) == (Path("quantaudit-name"), True)
    assert {"card.json", "profile.safetensors", "assets/"} <= {*(report.writes or ())}
