"""Advice on a model that does not fit its budget is that of the whole model, but for what needs all weights at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantaudit.advise.goal import Goal, Offers
from quantaudit.card.render import write_card
from quantaudit.common.resources import resource_dir
from quantaudit.measure.profile import profile_bytes
from quantaudit.model.blockwise.budget import PROGRAM
from quantaudit.model.blockwise.memory import resident_bytes
from quantaudit.pipeline.advise import AdvisedRecipe, advise_case
from quantaudit.pipeline.audit import audit
from quantaudit.pipeline.case import read_case
from quantaudit.settings import CaseSpec, Settings
from tests.builders import save_checkpoint
from tests.families import family_model
from tests.integration.test_cli import main

TEXT = {"samples": 8, "max_length": 32}


ONE = pytest.mark.parametrize("case", ["gemma4"], indirect=True)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CaseSpec:
    """Static INT8 for all Linears, and the card of a model of this family."""
    place = tmp_path_factory.mktemp(request.param)
    folder = save_checkpoint(place / "model", family_model(request.param))
    found = audit(Settings.of(str(folder), evaluation_tokens=64, device="cpu", samples=8, max_length=32))
    write_card(found.card, place / "card", others={"profile.safetensors": profile_bytes(found.profile)})
    return CaseSpec(
        recipe=resource_dir("recipes") / "w8a8_static.yaml",
        card=place / "card" / "card.json",
        model=str(folder),
        evaluation_tokens=64,
        device="cpu",
    )


def advised(case: CaseSpec, memory: int, said: list[str], *, smoothing: bool = False) -> AdvisedRecipe:
    return advise_case(
        read_case(case),
        Goal(max_kl=1e-9),
        Offers(smoothing=smoothing),
        say=said.append,
        memory=resident_bytes() + memory,
    )


@pytest.mark.parametrize("case", ["qwen3-moe", "gemma4"], indirect=True)
def test_it_is_the_same_advice(case: CaseSpec) -> None:
    said: list[str] = []
    whole = advised(case, 8 * PROGRAM, [])
    parts = advised(case, PROGRAM // 2, said)
    assert "run block by block, each read from disk" in said[0]
    assert not any("smoothing" in line for line in said)
    assert parts.advice.info == whole.advice.info
    assert parts.advice.row == whole.advice.row
    assert parts.text == whole.text
    assert whole.advice.info.changes


@ONE
def test_smoothing_is_not_offered(case: CaseSpec) -> None:
    said: list[str] = []
    parts = advised(case, PROGRAM // 2, said, smoothing=True)
    assert "smoothing is not offered, as it needs the whole model in memory" in said
    options = {name.rpartition(".")[2] for point in parts.advice.info.curve for name in point.options}
    assert not any("smooth" in option for option in options)


@ONE
def test_the_command_line(case: CaseSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, budget = tmp_path / "advised.yaml", resident_bytes() + PROGRAM // 2
    files = (case.recipe, "--card", case.card, "--model", case.model, "--out", out)
    assert main("advise", *files, "--evaluation-tokens", 64, "--device", "cpu", "--memory-budget", budget) in {0, 3}
    assert "block by block" in capsys.readouterr().err
    assert "QuantizationModifier" in out.read_text(encoding="utf-8")


@ONE
def test_without_a_recipe_there_is_no_model(case: CaseSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "advised.yaml"
    assert main("advise", "--card", case.card, "--out", out, "--max-bits", 6, "--memory-budget", "1GiB") == 2
    assert "--memory-budget: is for a RECIPE" in capsys.readouterr().err
