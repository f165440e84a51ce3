"""From a checkpoint to a verdict on a recipe: the card that `report` writes is all that `gate` needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantaudit import cli
from quantaudit.card.schema import Card, dump_card, load_card
from quantaudit.common.choices import INT8_SCHEMES
from quantaudit.common.resources import resource_dir
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.gate.run import gate
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.load import LoadedModel
from quantaudit.policy import load_policy
from quantaudit.simulate.sensitivity.recipe_estimate import estimate_of
from tests.recipe_cards import card_of

RECIPES = resource_dir("recipes")


@pytest.fixture(scope="module")
def audited(tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus) -> Card:
    from quantaudit.card.build import build_card
    from quantaudit.quant.schemes import SCHEMES
    from quantaudit.simulate.run import simulate
    from quantaudit.simulate.tensors import scale_rows

    simulation = simulate(tiny_loaded, tiny_profile, tiny_corpus.samples, list(SCHEMES.values()), evaluation_tokens=128)
    # A model of random weights does no better than guessing, which would end every gate as inconclusive: here, guessing
    # is given as far worse.
    evaluation = simulation.evaluation.model_copy(update={"unigram_perplexity": 1e6})
    simulation = simulation.model_copy(update={"evaluation": evaluation})
    return build_card(tiny_profile, scale_rows(tiny_profile), simulation, load_policy(), timings={})


@pytest.fixture
def card_file(audited: Card, tmp_path: Path) -> Path:
    path = tmp_path / "card.json"
    path.write_text(dump_card(audited), encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantaudit", "gate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("recipe", "row"), [("w8a8_static", "int8_static_per_tensor"), ("w8a8_dynamic", "int8_dynamic_per_token")]
)
def test_shipped_recipes_are_those_that_a_report_measures(audited: Card, recipe: str, row: str) -> None:
    report = gate(RECIPES / f"{recipe}.yaml", audited, load_policy())
    assert audited.simulation is not None
    measured = next(found for found in audited.simulation.recipes if found.name == row)
    assert (report.score.source, report.score.kl, report.score.top1) == ("measured", measured.kl, measured.top1)
    assert sum(use.modules for use in report.quantized) == report.linears - 1


def test_a_mixed_recipe_is_estimated_from_the_cards_prices(audited: Card, tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text((RECIPES / "w8a8_mixed.yaml").read_text(encoding="utf-8").replace("down_proj", "o_proj"))
    report = gate(recipe, audited, load_policy())
    assert audited.simulation is not None
    prices = [
        row.price
        for row in audited.simulation.groups
        if row.layer is not None and row.scheme.endswith("token" if row.projection == "o_proj" else "tensor")
    ]
    assert report.score.source == "estimated"
    total = sum(price or 0.0 for price in prices)
    assert report.score.kl == pytest.approx(estimate_of([audited.simulation]).kl(total))


@pytest.fixture(scope="module")
def standard(tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus) -> Card:
    """The tiny model's card with every standard scheme."""
    from quantaudit.card.build import build_card
    from quantaudit.pipeline.prepare import shapes_in_blocks
    from quantaudit.quant.standard import choose_schemes
    from quantaudit.simulate.experiment import GroupOptions
    from quantaudit.simulate.run import simulate

    chosen = choose_schemes("standard", (), shapes_in_blocks(tiny_loaded.model, tiny_loaded.architecture))
    options = GroupOptions(price_alone=chosen.price_alone)
    samples = tiny_corpus.samples
    simulation = simulate(tiny_loaded, tiny_profile, samples, chosen.schemes, evaluation_tokens=128, groups=options)
    return build_card(tiny_profile, [], simulation, load_policy(), timings={})


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_scored_on_a_card_or_refused(recipe: Path, standard: Card) -> None:
    report = gate(recipe, standard, load_policy())
    codes = {finding.code for finding in report.findings}
    if recipe.stem == "w8a8_smoothquant":  # what smoothing does not reach costs something at least
        assert report.score.source == "unknown"
        assert report.score.kl_low is not None
    else:
        assert report.score.source == "measured" or "QA413" in codes


def test_what_is_priced_alone_has_prices_and_no_damage(standard: Card) -> None:
    assert standard.simulation is not None
    for row in standard.simulation.groups:
        full = row.scheme in INT8_SCHEMES or row.scheme == "int8_weights"  # weights alone are replayed for INT8 anyway
        if row.layer is not None:
            assert row.price is not None
            assert (row.damage is not None) == full
    assert {verdict.worst_groups[0].ranked_by for verdict in standard.verdict.schemes} == {"price"}


@pytest.mark.parametrize("name", ["w8a8_static_moving_average", "fp8_dynamic"])
def test_a_recipe_is_measured_once_it_was_simulated(
    name: str,
    audited: Card,
    tiny_loaded: LoadedModel,
    tiny_profile: Profile,
    tiny_corpus: TokenizedCorpus,
) -> None:
    from quantaudit.recipe.parse import read_recipe
    from quantaudit.recipe.resolve import resolve
    from quantaudit.recipe.resolved import ResolvedRecipe
    from quantaudit.simulate.experiment import GroupOptions
    from quantaudit.simulate.run import simulate

    path = RECIPES / f"{name}.yaml"
    found = resolve(read_recipe(path), tiny_loaded.model)
    recipe = ResolvedRecipe(name=name, schemes=found.schemes, digest=found.digest)
    simulation = simulate(
        tiny_loaded,
        tiny_profile,
        tiny_corpus.samples,
        [],
        evaluation_tokens=64,
        groups=GroupOptions(score="damage"),
        recipes=[recipe],
    )
    row = next(row for row in simulation.recipes if row.name == name)
    assert gate(path, audited, load_policy()).score.source != "measured"
    report = gate(path, audited, load_policy(), simulation)
    assert (report.score.source, report.score.kl, report.score.top1) == ("measured", row.kl, row.top1)


def test_json_on_stdout_is_the_report_and_nothing_else(
    card_file: Path, audited: Card, capfd: pytest.CaptureFixture[str]
) -> None:
    code = run(RECIPES / "w8a8_static.yaml", "--card", card_file, "--format", "json")
    captured = capfd.readouterr()
    report = json.loads(captured.out)
    assert report["model"] == audited.model.name
    assert report["outcome"] == {0: "pass", 1: "fail", 3: "inconclusive"}[code]


def test_a_fresh_process_prints_clean_json(card_file: Path) -> None:
    """Importing llm-compressor says things on stdout; none of it may reach a reader of JSON."""
    command = [sys.executable, "-m", "quantaudit", "gate", str(RECIPES / "w8a8_dynamic.yaml"), "--card", str(card_file)]
    result = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    assert json.loads(result.stdout)["schema_version"] == "1.0"
    assert result.stderr == ""


def test_a_simulation_file_is_read(card_file: Path, audited: Card, tmp_path: Path) -> None:
    assert audited.simulation is not None
    exact = {"kl": 0.0, "kl_stderr": 0.0, "top1": 1.0, "top1_stderr": 0.0, "perplexity_base": 2.0}
    rows = [
        row.model_copy(
            update=exact | {"domains": {name: score.model_copy(update=exact) for name, score in row.domains.items()}}
        )
        for row in audited.simulation.recipes
    ]
    more = tmp_path / "more.yaml"
    more.write_text("extends: default\nevaluation: {tokens: 4096, samples: 2, level: 0.95, reason: a release}\n")
    path = tmp_path / "simulation.json"
    path.write_text(audited.simulation.model_copy(update={"recipes": rows}).model_dump_json(), encoding="utf-8")
    assert run(RECIPES / "w8a8_static.yaml", "--card", card_file, "--simulation", path) == 0
    assert run(RECIPES / "w8a8_static.yaml", "--card", card_file, "--simulation", path, "--policy", more) == 3


@pytest.mark.parametrize(
    ("row", "evaluation", "code"),
    [
        ({"perplexity_base": 1e6}, {"unigram_perplexity": 300.0}, "QA104 of the simulation"),
        ({"perplexity_base": 2.0}, {"unigram_perplexity": None}, "QA104 of the simulation"),
        ({"perplexity_base": 2.0}, {"overlapping": 2}, "QA114 of the simulation"),
    ],
)
def test_a_simulation_file_of_a_model_or_text_that_shows_nothing_does_not_pass(
    audited: Card, row: dict[str, float], evaluation: dict[str, Any], code: str
) -> None:
    assert audited.simulation is not None
    good = {"kl": 0.0, "kl_stderr": 0.0, "top1": 1.0, "top1_stderr": 0.0, **row}
    rows = [one.model_copy(update={**good, "domains": {}}) for one in audited.simulation.recipes]
    changed = audited.simulation.evaluation.model_copy(update=evaluation)
    simulation = audited.simulation.model_copy(update={"recipes": rows, "evaluation": changed})
    report = gate(RECIPES / "w8a8_static.yaml", audited, load_policy(), simulation)
    assert report.outcome != "pass"
    assert any(finding.message.startswith(code) for finding in report.findings)


def test_a_simulation_that_does_not_say_what_it_left_out_is_warned_of(audited: Card) -> None:
    assert audited.simulation is not None
    older = audited.simulation.evaluation.model_copy(update={"left_out": None, "overlapping": None})
    card = audited.model_copy(update={"simulation": audited.simulation.model_copy(update={"evaluation": older})})
    finding = next(
        row for row in gate(RECIPES / "w8a8_static.yaml", card, load_policy()).findings if row.code == "QA519"
    )
    assert (finding.severity, "Simulate again" in finding.remedy) == ("warning", True)


def test_a_simulation_file_of_other_weights_or_of_none_is_refused(
    card_file: Path, audited: Card, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of modules are the same in every checkpoint of a family."""
    assert audited.simulation is not None
    path = tmp_path / "simulation.json"
    whole = audited.simulation.model_dump(mode="json")
    nameless = {key: value for key, value in whole.items() if key != "fingerprint"}
    for found, message in (
        ({**whole, "fingerprint": "0" * 64}, "--simulation: simulation is of other weights (0000000000000000)"),
        (nameless, f"{path}: not a simulation: fingerprint: Field required"),
    ):
        path.write_text(json.dumps(found), encoding="utf-8")
        assert run(RECIPES / "w8a8_static.yaml", "--card", card_file, "--simulation", path) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"error: {message}")
        assert captured.err.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--card", "{card}"], "RECIPE is missing"),
        (["{recipe}"], "--card is missing"),
        (["{recipe}", "--card", "{card}", "--format", "xml"], "--format xml: unknown format"),
        (["{recipe}", "--card", "{card}", "--policy", "none"], "no such policy"),
        (["{recipe}", "--card", "{recipe}"], "not an activation card"),
        (["{recipe}", "--card", "lost.json"], "cannot read the card"),
        (["{recipe}", "--card", "{card}", "--simulation", "lost.json"], "cannot read the simulation"),
        (["{recipe}", "--card", "{card}", "--simulation", "{card}"], "not a simulation"),
        (["lost.yaml", "--card", "{card}"], "lost.yaml: no such file"),
        (["--explain", "QA999"], "no such rule"),
    ],
)
def test_bad_input_is_an_error_in_a_line_or_two(
    arguments: list[str], message: str, card_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"card": card_file, "recipe": RECIPES / "w8a8_dynamic.yaml"}
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) <= 2


def test_explain_needs_neither_recipe_nor_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--explain", "QA408") == 0
    assert "Serving engines run these Linears as one" in capsys.readouterr().out


def test_help_and_explain_do_not_import_torch() -> None:
    code = (
        "import sys; from quantaudit import cli; sys.argv = ['quantaudit', 'gate', *sys.argv[1:]]\n"
        "try: cli.main()\nexcept SystemExit as stop: assert not stop.code\n"
        "loaded = {'torch', 'transformers', 'llmcompressor'} & set(sys.modules); assert not loaded, loaded"
    )
    for argument in (["--help"], ["--explain", "QA513"]):
        result = subprocess.run([sys.executable, "-c", code, *argument], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("change", ["empty modules", "no residual sites"])
def test_a_card_that_says_little_ends_in_a_verdict(change: str, tmp_path: Path) -> None:
    card = card_of()
    nowhere = card.peak.model_copy(update={"fp16_headroom": None})
    changes: dict[str, Any] = {
        "empty modules": {"model": card.model.model_copy(update={"modules": []}), "sites": [], "peak": nowhere},
        "no residual sites": {"sites": [site for site in card.sites if site.kind != "residual"]},
    }[change]
    path = tmp_path / "card.json"
    path.write_text(dump_card(card.model_copy(update=changes)), encoding="utf-8")
    assert run(RECIPES / "w8a8_dynamic.yaml", "--card", path) == (1 if change == "empty modules" else 3)
    assert load_card(path)
