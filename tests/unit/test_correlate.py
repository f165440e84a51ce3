"""Correlations against a hand-written reference, and what their readings may claim."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quantaudit.correlate import FEWEST, bootstrap_interval, correlate, read
from quantaudit.simulate.records import Simulation
from tests.card_factory import STATIC, make_card


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    card = make_card()
    assert card.simulation is not None
    return card.simulation


@pytest.fixture(scope="module")
def amax() -> dict[str, float | None]:
    return {site.name.removesuffix(".input"): site.amax for site in make_card().sites if site.kind == "linear_input"}


def test_coefficients_are_those_of_ranks_over_the_groups(simulation: Simulation, amax: dict[str, float | None]) -> None:
    rows = {(row.scheme, row.scope, row.outcome): row for row in correlate(simulation, amax)}
    row = rows[STATIC, "down_proj", "damage"]
    groups = [g for g in simulation.groups if g.scheme == STATIC and g.projection == "down_proj"]
    x, y = np.array([amax[g.group] for g in groups], float), np.array([g.damage for g in groups], float)
    ranks = np.argsort(np.argsort(x)), np.argsort(np.argsort(y))
    d = ranks[0] - ranks[1]
    n = len(x)
    assert row.n == n == 30
    assert row.spearman == pytest.approx(1 - 6 * float(d @ d) / (n * (n * n - 1)), abs=1e-12)
    pairs = [(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])) for i in range(n) for j in range(i)]
    assert row.kendall == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_every_scope_and_outcome_of_the_static_scheme_is_there(
    simulation: Simulation, amax: dict[str, float | None]
) -> None:
    found = {(row.scope, row.outcome) for row in correlate(simulation, amax) if row.scheme == STATIC}
    scopes = {"all", "qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    outcomes = {"damage", "sqnr_db", "bulk_sqnr_db", "relative_mae", "zeroed_fraction", "effective_levels"}
    assert found == {(scope, outcome) for scope in scopes for outcome in outcomes}


def test_too_few_groups_give_no_row(simulation: Simulation, amax: dict[str, float | None]) -> None:
    few = dict(list(amax.items())[: FEWEST - 1])
    assert correlate(simulation, few) == []


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's rho of a bivariate normal with r = 0.6
    covered = 0
    for trial in range(60):
        x = generator.standard_normal(80)
        y = 0.6 * x + 0.8 * generator.standard_normal(80)
        low, high = bootstrap_interval(x, y, "spearman", seed=trial)
        covered += low <= truth <= high
        assert low <= stats.spearmanr(x, y).statistic <= high
    assert 51 <= covered <= 60


@pytest.mark.parametrize(
    ("rho", "low", "high", "words"),
    [
        (0.9, 0.8, 0.95, "higher block damage, closely"),
        (-0.5, -0.7, -0.2, "lower block damage, in part"),
        (0.2, 0.05, 0.4, "higher block damage, only weakly"),
        (0.5, -0.1, 0.8, "does not tell the block damage"),
    ],
)
def test_readings_say_no_more_than_the_interval_allows(rho: float, low: float, high: float, words: str) -> None:
    assert words in read("INT8", "all", "damage", rho, low, high)
