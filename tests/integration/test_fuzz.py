"""A few mutated inputs of every cheap reader, seeded: what `make fuzz` does at length."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest

from quantaudit.card.schema import Card, dump_card
from tests.fuzz import material, runs
from tests.fuzz.targets import TARGETS

INPUTS = 60
CHEAP = {
    *("recipe", "recipe-calibrated", "recipe-json", "policy", "card-gate", "card-junit", "simulation", "config-sites"),
    *("corpus-json", "corpus-txt", "corpus-gz", "index", "quanto-map", "openvino", "options-gate", "config-measure"),
}


@pytest.fixture(scope="module")
def stored(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("fuzz") / "material"
    material.build_without_running(folder)
    (folder / "card.json").write_text(dump_card(card))
    assert card.simulation is not None
    (folder / "simulation.json").write_text(card.simulation.model_dump_json())
    return folder


def test_no_mutated_input_ends_in_anything_but_an_exit_code_and_its_words(stored: Path, tmp_path: Path) -> None:
    random = Random(14)
    chosen = [target for target in TARGETS if target.name in CHEAP]
    drawn = random.choices(chosen, [target.weight for target in chosen], k=INPUTS)
    outcomes = [runs.run(target, seed, stored, tmp_path / "case") for seed, target in enumerate(drawn)]
    assert [outcome for outcome in outcomes if outcome.kind] == []
    assert {outcome.code for outcome in outcomes} >= {0, 2}


def test_findings_of_every_kind_are_found() -> None:
    for code, text, kind in (
        (None, "", "hang"),
        (1, "Traceback (most recent call last)", "traceback"),
        (2, "error: unexpected TypeError: x", "unexpected"),
        (2, "network: ('host', 443)", "network"),
        (0, "\x1b[2J", "escape"),
        (-11, "", "exit -11"),
        (2, "", "silent"),
        (2, "error: not YAML", None),
        (0, "", None),
    ):
        assert runs.fault(code, text) == kind


def test_an_input_is_the_same_again(stored: Path, tmp_path: Path) -> None:
    target = next(target for target in TARGETS if target.name == "recipe")
    contents = []
    for name in ("one", "two"):
        runs.prepare(target, 7, stored, tmp_path / name)
        contents.append((tmp_path / name / "recipe.yaml").read_bytes())
    assert contents[0] == contents[1] != (stored / "recipe.yaml").read_bytes()
    shutil.rmtree(tmp_path / "one")
