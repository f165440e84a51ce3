"""Correlations against a hand-written reference, and what their readings may claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from quantaudit.correlate import (
    FEWEST,
    RESAMPLES,
    bootstrap_interval,
    correlate,
    kendall,
    kurtosis,
    predictors,
    read,
    resampled_kendall,
    resampled_spearman,
    spearman,
)
from quantaudit.measure.profile import Profile
from quantaudit.simulate.records import Predictor, Simulation
from quantaudit.stats.site import summary
from tests.builders import distribution_of
from tests.card_factory import STATIC, make_card

Measured = dict[Predictor, dict[str, float | None]]


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    card = make_card()
    assert card.simulation is not None
    return card.simulation


@pytest.fixture(scope="module")
def amax() -> Measured:
    return {"amax": _amax()}


def _amax() -> dict[str, float | None]:
    return {site.name.removesuffix(".input"): site.amax for site in make_card().sites if site.kind == "linear_input"}


def test_coefficients_are_those_of_ranks_over_the_groups(simulation: Simulation, amax: Measured) -> None:
    rows = {(row.scheme, row.scope, row.outcome): row for row in correlate(simulation, amax)}
    row = rows[STATIC, "down_proj", "damage"]
    groups = [g for g in simulation.groups if g.scheme == STATIC and g.projection == "down_proj"]
    x, y = np.array([amax["amax"][g.group] for g in groups], float), np.array([g.damage for g in groups], float)
    ranks = np.argsort(np.argsort(x)), np.argsort(np.argsort(y))
    d = ranks[0] - ranks[1]
    n = len(x)
    assert row.n == n == 30
    assert row.spearman == pytest.approx(1 - 6 * float(d @ d) / (n * (n * n - 1)), abs=1e-12)
    pairs = [(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])) for i in range(n) for j in range(i)]
    assert row.kendall == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_every_scope_and_outcome_of_the_static_scheme_is_there(simulation: Simulation, amax: Measured) -> None:
    actual = {(row.scope, row.outcome) for row in correlate(simulation, amax) if row.scheme == STATIC}
    scopes = {"all", "partial", "qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    outcomes = {"damage", "price", "sqnr_db", "bulk_sqnr_db", "relative_mae", "zeroed_fraction", "effective_levels"}
    assert actual == {(scope, outcome) for scope in scopes for outcome in outcomes}


def test_too_few_groups_give_no_row(simulation: Simulation, amax: Measured) -> None:
    few = dict(list(amax["amax"].items())[: FEWEST - 1])
    assert correlate(simulation, {"amax": few}) == []


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


def test_batched_statistics_are_scipys() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 12, (20, 40)).astype(float), generator.standard_normal((20, 40))
    for i, (rho, tau) in enumerate(zip(spearman(x, y), kendall(x, y), strict=True)):
        assert rho == pytest.approx(stats.spearmanr(x[i], y[i]).statistic, abs=1e-12)
        assert tau == pytest.approx(stats.kendalltau(x[i], y[i]).statistic, abs=1e-12)


def test_a_partial_correlation_sees_through_the_projection() -> None:
    """Two kinds, far apart on both sides: together ρ is high, within each kind there is nothing, or its opposite."""
    generator = np.random.default_rng(0)
    kind = np.repeat([0, 1], 40)
    x = kind * 100 + generator.standard_normal(80)
    opposite = kind * 100.0 - (x - kind * 100)
    assert spearman(x[None], opposite[None])[0] > 0.4
    assert spearman(x[None], opposite[None], kind[None])[0] == pytest.approx(-1)
    assert kendall(x[None], opposite[None], kind[None])[0] == pytest.approx(-1)
    alone = kind * 100 + generator.standard_normal(80)
    assert spearman(x[None], alone[None])[0] > 0.7
    assert abs(spearman(x[None], alone[None], kind[None])[0]) < 0.3


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("n", [5, 40])
def test_resampled_statistics_are_those_of_every_resample(n: int, partial: bool) -> None:
    """Ties, and resamples in which one side does not vary, among them."""
    generator = np.random.default_rng(n)
    x, y = generator.integers(0, n // 2, (2, n)).astype(np.float64)
    kind = generator.integers(0, 3, n) if partial else None
    draws = generator.integers(0, n, (300, n))
    expected_kind = None if kind is None else kind[draws]
    expected = kendall(x[draws], y[draws], expected_kind)
    assert np.array_equal(resampled_kendall(x, y, draws, kind), expected, equal_nan=True)
    expected = spearman(x[draws], y[draws], expected_kind)
    assert np.array_equal(resampled_spearman(x, y, draws, kind), expected, equal_nan=True)
    assert n > 5 or np.isnan(expected).any()


def test_other_predictors_are_given_over_all_groups_only(simulation: Simulation, amax: Measured) -> None:
    alone = with_kl(simulation, amax["amax"], list(amax["amax"]))
    rows = correlate(alone, {**amax, "kurtosis": amax["amax"]})
    other = [row for row in rows if row.predictor == "kurtosis" and row.scheme == STATIC]
    assert {row.scope for row in other} == {"all", "partial"}
    assert {row.outcome for row in other} == {"damage", "price", "kl", "relative_mae", "zeroed_fraction"}
    (own,) = (row for row in other if (row.outcome, row.scope) == ("kl", "all"))
    assert own.spearman == pytest.approx(1)
    assert "a higher kurtosis goes with a higher KL of the group alone, closely" in own.reading


def with_kl(simulation: Simulation, kl: Mapping[str, float | None], sampled: Sequence[str]) -> Simulation:
    """Static rows with the KL of their group, those of `sampled` marked."""
    groups = [
        row.model_copy(update={"kl": kl.get(row.group), "sampled": row.group in sampled})
        if row.scheme == STATIC and row.layer is not None
        else row
        for row in simulation.groups
    ]
    return simulation.model_copy(update={"groups": groups})


def test_the_kl_of_single_groups_rests_on_the_sample_alone(simulation: Simulation, amax: Measured) -> None:
    """Groups simulated for another purpose are left out, here with a KL that would turn the sign."""
    inside = [row.group for row in simulation.groups if row.scheme == STATIC and row.layer is not None]
    sampled = inside[::5]
    kl = {name: (1 if name in sampled else -1) * (amax["amax"][name] or 0.0) + 1e6 for name in inside}
    rows = [row for row in correlate(with_kl(simulation, kl, sampled), amax) if row.outcome == "kl"]
    assert {row.scheme for row in rows} == {STATIC}
    whole = next(row for row in rows if row.scope == "all")
    assert whole.n == len(sampled) == 24
    assert whole.spearman == pytest.approx(1)
    assert f"over 24 of {len(inside)} groups: a higher peak goes with a higher KL of the group alone" in whole.reading
    # Six of each projection are fewer than a correlation needs.
    assert {row.scope for row in rows} == {"all", "partial"}
    assert correlate(with_kl(simulation, kl, sampled[: FEWEST - 1]), amax) == correlate(simulation, amax)


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ("all", "over 9 of 30 groups:"),
        ("partial", "between groups of one projection, 9 of 30 in all:"),
        ("down_proj", "within 9 of 30 down_proj inputs:"),
    ],
)
def test_readings_tell_on_how_many_groups_they_rest(scope: str, words: str) -> None:
    sentence = read("INT8", scope, "kl", 0.9, 0.8, 0.95, rests_on=(9, 30))
    assert words in sentence
    assert "9 of" not in read("INT8", scope, "kl", 0.9, 0.8, 0.95, rests_on=(30, 30))


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_kurtosis_is_scipys_of_the_values_themselves(spread: float) -> None:
    x = (spread * torch.randn(4096, generator=torch.Generator().manual_seed(0)) ** 3).bfloat16()
    assert kurtosis(distribution_of(x)) == pytest.approx(stats.kurtosis(x.double().numpy(), fisher=False), rel=1e-9)
    assert np.isnan(kurtosis(distribution_of(torch.ones(16))))


def test_predictors_are_those_of_the_evaluation_split(tiny_profile: Profile) -> None:
    actual = predictors(tiny_profile)
    name = "layers.0.mlp.down_proj"
    evaluation = tiny_profile.split(f"{name}.input", "evaluation")
    assert evaluation is not None
    described = summary(evaluation)
    assert actual["amax"][name] == described.amax
    assert actual["peak_over_rms"][name] == pytest.approx(described.amax / described.rms)
    assert set(actual) == {"amax", "peak_over_rms", "kurtosis"}


@pytest.mark.parametrize("partial", [False, True], ids=["all groups", "apart from the projection"])
def test_the_interval_is_of_ninety_five_in_a_hundred_resampled_coefficients(partial: bool) -> None:
    """Against scipy, draw by draw: pairs keep their projection when they are drawn again."""
    rng = np.random.default_rng(3)
    x, kind = rng.normal(size=24), np.repeat([0, 1, 2], 8)
    y = x + rng.normal(size=24) + 3 * kind
    draws = np.random.default_rng(7).integers(0, 24, (RESAMPLES, 24))
    actual = []
    for draw in draws:
        a, b = stats.rankdata(x[draw]), stats.rankdata(y[draw])
        for one in np.unique(kind[draw]) if partial else []:
            mine = kind[draw] == one
            a[mine] -= a[mine].mean()
            b[mine] -= b[mine].mean()
        actual.append(stats.pearsonr(a, b).statistic)
    low, high = bootstrap_interval(x, y, "spearman", 7, kind if partial else None)
    assert (low, high) == pytest.approx(tuple(np.quantile(actual, [0.025, 0.975])), abs=1e-12)
    assert np.mean((np.array(actual) >= low) & (np.array(actual) <= high)) == pytest.approx(0.95, abs=0.005)
