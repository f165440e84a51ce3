"""The whole simulation: all three levels from one profile, on the same evaluation tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quantaudit.common.choices import parse_price_source
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import CorpusError, MeasurementError, UsageError
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, SCHEMES
from quantaudit.simulate import cost
from quantaudit.simulate.cost import Work, forward_passes
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.experiment import GroupOptions
from quantaudit.simulate.logits.baselines import MIXED, MIXED_BY_PROJECTION, MIXED_SHARE
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.replay.backward_pass import RecordedPass, record_backward
from quantaudit.simulate.run import simulate
from quantaudit.simulate.sensitivity.draws import MOST
from quantaudit.simulate.sensitivity.recipe_estimate import REACH, AdditivityCurve
from quantaudit.simulate.sensitivity.uncertain import MOST as UNCERTAIN
from tests.builders import random_corpus
from tests.unit.simulate.reference import damage_rows, price_groups, ranges

BUDGET = 60


@pytest.fixture(scope="module")
def simulation(tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus) -> Simulation:
    return simulate(tiny_loaded, tiny_profile, tiny_corpus.samples, list(SCHEMES.values()), evaluation_tokens=BUDGET)


def test_every_level_covers_every_scheme(simulation: Simulation, architecture: Architecture) -> None:
    names = set(SCHEMES)
    assert {row.name for row in simulation.schemes} == names
    assert {(row.group, row.scheme) for row in simulation.groups} == {
        (group.name, scheme) for group in architecture.groups for scheme in names
    }
    assert names <= {row.name for row in simulation.recipes}
    assert {row.group for row in simulation.sites} == {group.name for group in architecture.groups}


def test_the_evaluation_tokens_are_those_that_were_selected(
    simulation: Simulation, tiny_corpus: TokenizedCorpus
) -> None:
    chosen = select(tiny_corpus.samples, BUDGET)
    assert simulation.evaluation.samples == [sample.id for sample in chosen]
    assert simulation.evaluation.tokens == sum(len(sample.ids) for sample in chosen) <= BUDGET
    assert {row.tokens for row in simulation.recipes} == {simulation.evaluation.tokens}
    assert simulation.evaluation.arithmetic == "bfloat16"


def test_static_ranges_come_from_the_calibration_samples(
    simulation: Simulation,
    tiny_loaded: LoadedModel,
    architecture: Architecture,
    tiny_corpus: TokenizedCorpus,
) -> None:
    """Ranges watched by hooks on the calibration samples alone give the very same damage."""
    calibration = [sample for sample in tiny_corpus.samples if sample.split == "calibration"]
    watched = ranges(tiny_loaded.model, architecture.groups, calibration)
    chosen = select(tiny_corpus.samples, BUDGET)
    expected = damage_rows(tiny_loaded.model, architecture, chosen, [INT8_STATIC], {INT8_STATIC.name: watched})
    rows = [row for row in simulation.groups if row.scheme == INT8_STATIC.name]
    assert [(row.group, row.damage) for row in rows] == [(row.group, row.damage) for row in expected]


def test_recipes_leave_the_output_projection_alone(simulation: Simulation, architecture: Architecture) -> None:
    inside = sum(group.layer is not None for group in architecture.groups)
    assert {row.groups for row in simulation.recipes} == {inside}
    assert {row.damage for row in simulation.groups if row.group == "lm_head"} == {None}


def test_it_names_the_weights_and_the_text_that_it_is_of(simulation: Simulation, tiny_profile: Profile) -> None:
    provenance = tiny_profile.provenance
    assert simulation.fingerprint == provenance.model.fingerprint
    assert simulation.corpus_sha256 == provenance.corpus.sha256


def test_the_simulation_survives_its_file(simulation: Simulation) -> None:
    assert Simulation.model_validate_json(simulation.model_dump_json()) == simulation


def test_a_corpus_that_cannot_be_evaluated_is_refused(tiny_loaded: LoadedModel, tiny_profile: Profile) -> None:
    corpus = random_corpus([1, 1, 1, 1])
    with pytest.raises(CorpusError, match="two tokens"):
        simulate(tiny_loaded, tiny_profile, corpus.samples, [INT8_DYNAMIC], evaluation_tokens=BUDGET)


def test_prices_stand_beside_damage_with_every_schemes_own_ranges(
    simulation: Simulation, tiny_loaded: LoadedModel, architecture: Architecture, tiny_corpus: TokenizedCorpus
) -> None:
    calibration = [sample for sample in tiny_corpus.samples if sample.split == "calibration"]
    watched = ranges(tiny_loaded.model, architecture.groups, calibration)
    chosen = select(tiny_corpus.samples, BUDGET)
    expected = price_groups(
        tiny_loaded.model, architecture, chosen, list(SCHEMES.values()), {INT8_STATIC.name: watched}
    )
    by_gradients = {(row.group, row.scheme): row.price for row in simulation.groups if not row.price_simulated}
    assert by_gradients == {key: price for key, price in expected.items() if key in by_gradients}
    assert len(by_gradients) >= len(expected) - UNCERTAIN
    assert all(price is not None and price > 0 for price in expected.values())
    assert simulation.evaluation.priced
    assert simulation.evaluation.note is None
    assert (simulation.evaluation.price_source, simulation.evaluation.draws) == ("gradient", MOST)
    assert {row.price_low for row in simulation.groups} == {None}


def test_recipes_carry_the_kl_that_prices_sum_to_and_not_their_own(simulation: Simulation) -> None:
    """Each estimate rests on the other recipes alone: the median of the KLs that their bends give."""
    inside = {(row.group, row.scheme): row for row in simulation.groups if row.layer is not None}
    floor = simulation.evaluation.rounding_floor
    assert floor is not None
    rows = {row.name: row for row in simulation.recipes}
    static = {group: row for (group, scheme), row in inside.items() if scheme == INT8_STATIC.name}
    total = sum(row.price or 0.0 for row in static.values())
    worst: dict[str, float] = {}
    for group, row in sorted(static.items(), key=lambda item: -(item[1].price or 0.0)):
        if sum(worst.values()) < MIXED_SHARE * total:
            worst[group] = row.price or 0.0
    sums = {
        scheme: sum(row.price or 0.0 for (_, name), row in inside.items() if name == scheme)
        for scheme in (INT8_STATIC.name, INT8_DYNAMIC.name)
    }
    by_projection = {group for group, row in static.items() if row.projection == "down_proj"}
    for recipe, dynamic in ((MIXED, set(worst)), (MIXED_BY_PROJECTION, by_projection)):
        names = {group: (INT8_DYNAMIC if group in dynamic else INT8_STATIC).name for group in static}
        sums[recipe] = sum(inside[item].price or 0.0 for item in names.items())
    for name, row in rows.items():
        others = [AdditivityCurve.through(sums[o], rows[o].kl or 0.0, floor) for o in rows if o != name]
        medians = []
        for total in (sums[name], *(REACH * curve.fitted_up_to for curve in others)):  # an estimate never falls
            if total <= sums[name]:
                near = [curve for curve in others if REACH * curve.fitted_up_to >= total]
                near = near or [max(others, key=lambda curve: curve.fitted_up_to)]
                medians.append(sorted(curve.kl(total) for curve in near)[len(near) // 2])
        assert row.kl_estimate == pytest.approx(max(medians))
    assert all(row.kl_estimate is not None and row.kl_estimate != row.kl for row in simulation.recipes)


def test_where_several_draws_do_not_fit_one_is_taken(
    tiny_loaded: LoadedModel,
    tiny_profile: Profile,
    tiny_corpus: TokenizedCorpus,
    architecture: Architecture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def scarce(*arguments: Any, draws: int, **options: Any) -> RecordedPass:
        tried.append(draws)
        if draws > 1:
            raise torch.OutOfMemoryError("out of memory")
        return record_backward(*arguments, draws=draws, **options)

    monkeypatch.setattr("quantaudit.simulate.sensitivity.prices.record_backward", scarce)
    simulation = simulate(tiny_loaded, tiny_profile, tiny_corpus.samples, [INT8_DYNAMIC], evaluation_tokens=BUDGET)
    monkeypatch.undo()
    assert tried == [MOST, 1]
    assert (simulation.evaluation.price_source, simulation.evaluation.note) == ("gradient", None)
    assert simulation.evaluation.draws == 1
    chosen = select(tiny_corpus.samples, BUDGET)
    expected = price_groups(tiny_loaded.model, architecture, chosen, [INT8_DYNAMIC], {}, draws=1)
    by_gradients = {(row.group, row.scheme): row.price for row in simulation.groups if not row.price_simulated}
    assert by_gradients == {key: price for key, price in expected.items() if key in by_gradients}
    assert len(by_gradients) >= len(expected) - UNCERTAIN


@pytest.mark.parametrize("score", ["damage", "auto", "gradient"])
def test_where_no_backward_pass_fits_prices_come_from_damage(
    tiny_loaded: LoadedModel,
    tiny_profile: Profile,
    tiny_corpus: TokenizedCorpus,
    monkeypatch: pytest.MonkeyPatch,
    score: str,
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("out of memory\ndetails")

    monkeypatch.setattr("quantaudit.simulate.sensitivity.prices.record_backward", fail)

    def run_simulation() -> Simulation:
        return simulate(
            tiny_loaded,
            tiny_profile,
            tiny_corpus.samples,
            [INT8_DYNAMIC],
            evaluation_tokens=BUDGET,
            groups=GroupOptions(score=score),
        )

    if score == "gradient":
        with pytest.raises(MeasurementError, match="backward pass failed"):
            run_simulation()
        return
    simulation = run_simulation()
    assert simulation.evaluation.priced
    assert (simulation.evaluation.price_source, simulation.evaluation.draws) == ("damage", None)
    for row in simulation.groups:
        if row.damage is None:
            assert row.price is row.price_low is row.price_high is None
        else:
            assert row.price is not None
            assert row.price_low is not None
            assert row.price_high is not None
            assert row.price_low <= row.price <= row.price_high
    assert (simulation.evaluation.note is None) == (score == "damage")
    assert "details" not in (simulation.evaluation.note or "")


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(UsageError, match="score"):
        parse_price_source("guess")


@pytest.mark.parametrize(("by_damage", "single"), [(True, 0), (False, 0), (False, 3)])
def test_the_cost_counts_the_forward_passes_that_are_made(
    tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus, by_damage: bool, single: int
) -> None:
    calls = [0]
    model: Any = tiny_loaded.model
    handle = model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, _args: calls.__setitem__(0, calls[0] + 1)
    )
    schemes = [INT8_STATIC, INT8_DYNAMIC]
    simulation = simulate(
        tiny_loaded,
        tiny_profile,
        tiny_corpus.samples,
        schemes,
        evaluation_tokens=256,
        groups=GroupOptions(score="damage" if by_damage else "gradient", single=single),
    )
    handle.remove()
    passes = calls[0] / len(simulation.evaluation.samples)
    expected = forward_passes(Work(tokens=0, evaluated=256, schemes=2, weights=1, by_damage=by_damage, single=single))
    # Beyond passes through the whole model: blocks run alone, hooks of quantizers, and the way back.
    blocks = cost.CLEAN + cost.REPLAYED * 3
    hooks = (cost.SCORED - 1) * 4
    back = 0 if by_damage else cost.gradient_passes(256)
    structure = 0 if by_damage else 1 / len(simulation.evaluation.samples)  # one sample shows where groups join
    fewer = 0 if by_damage else UNCERTAIN - sum(row.price_simulated and not row.sampled for row in simulation.groups)
    # Passes that begin at a block embed their tokens too; one sample, twice, shows whether they can.
    skipped = 4 - cost.FLOOR + 2 / len(simulation.evaluation.samples)
    assert passes == pytest.approx(expected - blocks - hooks - back - fewer + structure + skipped)
