"""Every trap has its own finding or its own error, every good recipe passes, and nothing ends in a traceback."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from quantaudit import cli
from quantaudit.card.schema import Card, ExceedanceInfo, ExceedanceRow, Finding, PeakSummary, StabilityInfo, dump_card
from quantaudit.card.seal import seal
from quantaudit.gate.evidence import gather
from quantaudit.gate.rules import RULES
from quantaudit.policy import load_policy
from quantaudit.provenance import Unmeasured
from quantaudit.recipe.parse import parse_recipe
from tests.card_factory import make_verification
from tests.recipe_cards import STATIC, card_of, coverage, modules_and_groups, recipe_row, scales_of

ZOO = Path(__file__).parent.parent / "zoo"
BROKEN = sorted((ZOO / "broken").iterdir())
GOOD = sorted(path for path in (ZOO / "good").iterdir())
OFFICIAL = sorted((ZOO / "official").iterdir())
EXPECT = re.compile(r"# card: (?P<card>\S+) · policy: (?P<policy>\S+) · expect: exit (?P<code>\d)(?:, (?P<what>.*))?")


def unmeasured_layer() -> Card:
    card = card_of()
    rows = [Unmeasured(module=f"model.layers.2.{m}", reason="no images in the corpus", weights=True) for m in LAYER]
    return card.model_copy(update={"coverage": coverage(*rows)})


LAYER = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]


def with_nan() -> Card:
    card = card_of()
    sites = [
        site.model_copy(update={"nonfinite": 3}) if site.name == "layers.1.mlp.down_proj.input" else site
        for site in card.sites
    ]
    return card.model_copy(update={"sites": sites})


def uncalibrated() -> Card:
    _, _, groups = modules_and_groups("llama")
    return card_of(scales=scales_of([group for group in groups if group.name != "layers.0.mlp.down_proj"]))


def exceeded() -> Card:
    row = ExceedanceRow(
        site="layers.0.mlp.down_proj.input",
        calibration_amax=10.0,
        evaluation_amax=21.0,
        ratio=2.1,
        samples=9,
        samples_beyond=1,
        elements_beyond=1e-6,
    )
    seen = ExceedanceInfo(compared=12, beyond=1, worst=[row], reading="")
    return card_of(stability=StabilityInfo(overall=None, quantized=None, exceedance=seen))


def breaking() -> Card:
    card = card_of()
    assert card.simulation is not None
    rows = [recipe_row(STATIC, None, nonfinite=True)]
    return card.model_copy(update={"simulation": card.simulation.model_copy(update={"recipes": rows})})


def broken_load() -> Card:
    finding = Finding(
        code="QA104",
        severity="error",
        module=None,
        message="perplexity 41,000 of the unquantized model is close to guessing",
        value=41000.0,
        threshold=1000.0,
        reason="It was loaded wrongly.",
        remedy="Check the tokenizer.",
    )
    return card_of(findings=[finding])


def head_priced() -> Card:
    """A card on which the dynamic recipe that takes lm_head too was simulated."""
    from quantaudit.recipe.parse import read_recipe
    from quantaudit.recipe.resolve import resolve
    from quantaudit.recipe.skeleton import skeleton_model

    card = card_of()
    digest = resolve(read_recipe(ZOO / "broken" / "head.yaml"), skeleton_model(card.model.modules)).digest
    assert card.simulation is not None
    rows = [*card.simulation.recipes, recipe_row("with head", 0.01, digest=digest)]
    return card.model_copy(update={"simulation": card.simulation.model_copy(update={"recipes": rows})})


def fp16() -> Card:
    peak = 65504 / 0.9
    sites = [
        site.model_copy(update={"amax": peak, "max": peak}) if site.kind == "residual" else site
        for site in card_of().sites
    ]
    card = card_of(peak=PeakSummary(overall=None, quantized=None, fp16_headroom=0.9), sites=sites)
    return card.model_copy(update={"model": card.model.model_copy(update={"dtype": "float16"})})


def with_static_row(**changes: Any) -> Card:
    """A card whose static recipe has a score of its own."""
    card = card_of()
    assert card.simulation is not None
    rows = [recipe_row(STATIC, changes.pop("kl"), **changes)]
    return card.model_copy(update={"simulation": card.simulation.model_copy(update={"recipes": rows})})


def contradictory() -> Card:
    """A card whose KL is not that of its domains."""
    card = with_static_row(kl=1.5)
    assert card.simulation is not None
    rows = [row.model_copy(update={"kl": 0.001, "top1": 0.99}) for row in card.simulation.recipes]
    return card.model_copy(update={"simulation": card.simulation.model_copy(update={"recipes": rows})})


def disproved() -> Card:
    """A card whose verification of the static recipe saved something else."""
    card, recipe = with_static_row(kl=0.01), ZOO / "broken" / "disproved.yaml"
    digest = gather(parse_recipe(recipe.read_text(encoding="utf-8"), "r.yaml"), card, load_policy(), None)
    reason = "What was saved does not agree with the prediction."
    row = make_verification(digest=digest.resolution.digest, agrees=False, reason=reason)
    return card.model_copy(update={"verification": [row]})


def undersampled() -> Card:
    row = Unmeasured(
        module="model.layers.0.mlp.experts.3.down_proj", reason="expert saw 9 tokens, fewer than 16", weights=True
    )
    return card_of("qwen3-moe", coverage=coverage(row))


FAMILIES = ("llama", "qwen3-moe", "gpt2", "llama4", "qwen3.5-moe")
CARDS: dict[str, Callable[[], Card]] = {
    **{family: lambda family=family: card_of(family) for family in FAMILIES},
    "llama-hurt": lambda: card_of(hurt={"down_proj": 0.4}),
    "llama-near": lambda: card_of(hurt={"qkv_proj": 0.05}),
    "llama-unmeasured": unmeasured_layer,
    "llama-nan": with_nan,
    "llama-uncalibrated": uncalibrated,
    "llama-exceeded": exceeded,
    "llama-breaks": breaking,
    "llama-broken-load": broken_load,
    "llama-head-priced": head_priced,
    "llama-fp16": fp16,
    "llama-undecided": lambda: with_static_row(kl=0.14, kl_stderr=0.02, top1=0.9),
    "llama-contradictory": contradictory,
    "llama-disproved": disproved,
    "qwen3-moe-undersampled": undersampled,
}


@pytest.fixture(scope="session")
def card_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("cards")

    @cache
    def write(name: str) -> Path:
        path = folder / f"{name}.json"
        path.write_text(dump_card(seal(CARDS[name]())), encoding="utf-8")
        return path

    return write


def gate(
    capsys: pytest.CaptureFixture[str], recipe: Path, card: Path, policy: str, output: str = "json"
) -> tuple[int, str, str]:
    arguments = ["quantaudit", "gate", str(recipe), "--card", str(card), "--policy", policy, "--format", output]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stop:
            cli.main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def expectation(path: Path) -> dict[str, str]:
    """What a file of the zoo says must come of it; a JSON file cannot say, and must pass on the calm card."""
    if path.suffix == ".json":
        return {"card": "llama", "policy": "default", "code": "0", "what": ""}
    found = EXPECT.match(path.read_text(encoding="utf-8").splitlines()[1])
    assert found is not None, path
    return {key: value or "" for key, value in found.groupdict().items()}


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_recipe_has_its_own_finding(
    path: Path, card_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = expectation(path)
    code, out, err = gate(capsys, path, card_file(expected["card"]), expected["policy"])
    assert "Traceback" not in err
    assert code == int(expected["code"]), out + err
    if code == 2:
        assert out == ""
        assert expected["what"] in err
        assert err.startswith(f"error: {path}")
        assert "unexpected" not in err
        assert len(err.strip().splitlines()) == 2  # what and where; what to do
        return
    report = json.loads(out)
    grave = {row["code"] for row in report["findings"] if row["severity"] != "info"}
    wanted = set(expected["what"].split())
    light = {row["code"] for row in report["findings"]} - grave
    assert grave | (light & wanted) == wanted, [(row["code"], row["message"]) for row in report["findings"]]
    assert all(row["message"] and row["remedy"] and "None" not in row["message"] for row in report["findings"])


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_recipe_passes(path: Path, card_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    expected = expectation(path)
    code, out, err = gate(capsys, path, card_file(expected["card"]), expected["policy"])
    assert (code, err) == (0, ""), out
    assert [row["code"] for row in json.loads(out)["findings"] if row["severity"] != "info"] == []


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.stem)
def test_what_the_makers_recommend_is_not_found_fault_with(
    path: Path, card_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Shapes of llm-compressor's own examples: nothing but what the file says may be said, and no group size here."""
    found = re.match(r"# card: (\S+) · may say: (.*)", path.read_text(encoding="utf-8").splitlines()[1])
    assert found is not None, path
    code, out, err = gate(capsys, path, card_file(found[1]), "default")
    assert "Traceback" not in err
    report = json.loads(out)
    grave = {row["code"]: row["message"] for row in report["findings"] if row["severity"] != "info"}
    assert set(grave) <= set(found[2].split()), grave
    assert code in (0, 3)


@pytest.mark.parametrize("output", ["text", "github", "junit", "sarif"])
@pytest.mark.parametrize("name", ["broken/outliers", "broken/gptq", "broken/no_stage", "good/static"])
def test_the_format_does_not_change_the_exit_code(
    name: str, output: str, card_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = ZOO / f"{name}.yaml"
    expected = expectation(path)
    code, out, _ = gate(capsys, path, card_file(expected["card"]), expected["policy"], output)
    assert code == int(expected["code"])
    assert bool(out) == (code != 2)


def test_every_rule_is_caught_by_a_broken_recipe() -> None:
    caught = {code for path in BROKEN for code in re.findall(r"QA\d{3}", expectation(path)["what"])}
    # Information: QA411 accompanies every static recipe, QA419 the recipes of some model types (tests of the rules).
    # QA428 takes a card of stacked experts, QA518 one that was edited, QA519 one of text with copies (tests of the
    # rules, of the seal, of evidence).
    assert caught == set(RULES) - {"QA411", "QA419", "QA428", "QA518", "QA519"}


def test_the_zoo_is_large_and_each_trap_its_own() -> None:
    traps = [path.read_text(encoding="utf-8").splitlines()[0] for path in BROKEN]
    assert len(traps) == len(set(traps)) >= 20
