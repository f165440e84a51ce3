"""Prices left to chance: which groups are simulated for it, and what their prices become."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, Group
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, Scheme
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.logits.rounding_floor import RoundingFloor
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.replay.replayed_sums import CallSums, ReplayedError
from quantaudit.simulate.run import simulate
from quantaudit.simulate.sensitivity.uncertain import MATTERS, MOST, price_by_kl, uncertain
from tests.unit.simulate.reference import price_groups

FLOOR = RoundingFloor(depths=(0, 2), kl=(0.002, 0.001))
NONE = RoundingFloor(depths=(0,), kl=(0.0,))
BUDGET = 60


def group(name: str, layer: int | None = 0) -> Group:
    return Group(name=name, projection="p", layer=layer, members=(name,))


def effect(name: str, price: float | None, stderr: float | None, scheme: Scheme = INT8_STATIC) -> GroupEffect:
    return GroupEffect(group=group(name), scheme=scheme, price=price, price_stderr=stderr)


def experiment_on(effects: list[GroupEffect]) -> Experiment:
    groups = tuple({effect.group.name: effect.group for effect in effects}.values())
    return Experiment(model=None, architecture=Architecture(blocks=(), sites=(), groups=groups), samples=[])


def test_the_standard_error_is_that_of_labels_drawn_again() -> None:
    """g·Δy of each token normal around zero, of unequal variance: as prices of 4,000 runs of six draws scatter."""
    generator, tokens, draws = np.random.default_rng(0), 50, 6
    scale = np.exp(generator.normal(0, 2, tokens))
    terms = 0.5 * (generator.normal(size=(4_000, draws, tokens)) * scale) ** 2
    scatter = terms.sum((1, 2)).std() / (tokens * draws)
    told = [
        ReplayedError.of(
            [CallSums(0, tokens, tokens, None, run.sum(1).tolist(), float((run**2).sum()))], draws
        ).price_stderr
        for run in terms
    ]
    assert math.sqrt(np.mean(np.square(told))) == pytest.approx(scatter, rel=0.05)


def test_an_error_without_a_price_is_unknown() -> None:
    assert ReplayedError.of([CallSums(0, 4, 4, 0.5, None, None)], 2) == ReplayedError(0.125, None, None)
    infinite = ReplayedError.of([CallSums(0, 4, 4, None, [math.inf], math.inf)], 1)
    assert infinite == ReplayedError(None, None, None)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30))
def test_those_that_matter_most_are_simulated_and_no_others(values: list[tuple[float, float]]) -> None:
    effects = [effect(f"g{i}", price, price * share) for i, (price, share) in enumerate(values)]
    total = sum(e.price or 0.0 for e in effects)
    chosen = uncertain(experiment_on(effects), effects, NONE)
    errors = [e.price_stderr or 0.0 for e in chosen]
    assert errors == sorted(errors, reverse=True)
    over = [e for e in effects if (e.price_stderr or 0.0) > MATTERS * total]
    assert len(chosen) == min(MOST, len(over))
    assert all(e in over for e in chosen)
    left = [e.price_stderr or 0.0 for e in over if e not in chosen]
    assert not left or max(left) <= min(errors)


def test_each_scheme_has_a_sum_of_its_own() -> None:
    """A group that hardly counts under a scheme that breaks the model decides under one that does not."""
    broken = [effect("a", 10.0, 0.05), effect("b", 1.0, 0.05)]
    mild = [effect("a", 0.01, 0.005, INT8_DYNAMIC), effect("b", 0.01, 0.00001, INT8_DYNAMIC)]
    assert uncertain(experiment_on(broken), [*broken, *mild], NONE) == [mild[0]]


def test_what_has_no_price_or_is_not_called_is_not_simulated() -> None:
    effects = [effect("a", None, None), effect("b", 1.0, None), effect("c", 1.0, 0.5)]
    assert uncertain(experiment_on(effects), effects, NONE) == [effects[2]]
    assert uncertain(experiment_on(effects[:2]), effects, NONE) == []


def test_what_rounding_hides_is_not_simulated() -> None:
    effects = [effect("a", 0.003, 0.0019), effect("b", 0.003, 0.0021)]
    assert uncertain(experiment_on(effects), effects, FLOOR) == [effects[1]]
    deep = [replace(one, group=group(one.group.name, layer=2)) for one in effects]
    assert uncertain(experiment_on(deep), deep, FLOOR) == deep[::-1]


def test_the_price_is_the_kl_less_the_floor_at_its_depth() -> None:
    effects = [
        replace(effect("a", 1.0, 0.5), kl=0.4, group=group("a", layer=1)),
        replace(effect("b", 1.0, 0.5), kl=0.0005),
        effect("c", 1.0, 0.5),
    ]
    price_by_kl(effects, FLOOR)
    assert [(e.price, e.price_simulated) for e in effects] == [(pytest.approx(0.3985), True), (0.0, True), (1.0, False)]


def test_a_simulation_names_the_prices_that_it_simulated(
    tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus, architecture: Architecture
) -> None:
    """Of a model with few groups many prices matter; all others are what gradients say."""
    simulation: Simulation = simulate(
        tiny_loaded, tiny_profile, tiny_corpus.samples, [INT8_DYNAMIC], evaluation_tokens=BUDGET
    )
    rows = {row.group: row for row in simulation.groups}
    chosen = [row for row in rows.values() if row.price_simulated]
    assert 0 < len(chosen) <= MOST
    assert len(chosen) < len(rows)
    floor = simulation.evaluation.rounding_floor
    assert floor is not None
    for row in chosen:
        assert row.kl is not None
        assert row.price is not None
        assert not row.sampled
        assert max(row.kl - floor, 0) - 1e-12 <= row.price <= row.kl
    samples = select(tiny_corpus.samples, BUDGET)
    by_gradients = price_groups(tiny_loaded.model, architecture, samples, [INT8_DYNAMIC], {})
    others = {name: row.price for name, row in rows.items() if not row.price_simulated}
    assert others == {name: price for (name, _), price in by_gradients.items() if name in others}
    assert {row.kl for row in rows.values() if not row.price_simulated} == {None}
