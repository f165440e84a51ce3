"""The tail's prediction interval: coverage by simulation, its parts against scipy, and when it keeps silent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import Generator
from scipy import stats

from quantaudit.stats.maxima.tail import FIT_LEAST, HORIZON, TRUSTED, fit, log_density, posterior, predictive_quantile

DISTRIBUTIONS: dict[str, Callable[[Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "Student t3": lambda rng, n: rng.standard_t(3, size=n),
    "lognormal": lambda rng, n: rng.lognormal(size=n),
}
"""The four of the acceptance criterion; benchmarks/tail_coverage.py runs 1,000 trials of each."""


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_interval_covers_the_maximum_of_ten_times_as_many_new_samples(name: str) -> None:
    draw, rng, trials, covered = DISTRIBUTIONS[name], np.random.default_rng(5), 200, 0
    for _ in range(trials):
        tail = fit(draw(rng, 1000))
        assert tail is not None
        assert not tail.few
        covered += tail.low <= draw(rng, HORIZON * 1000).max() <= tail.high
    assert covered >= 0.9 * trials


def test_the_interval_is_not_merely_huge() -> None:
    rng = np.random.default_rng(6)
    tails = [fit(rng.standard_normal(1000)) for _ in range(20)]
    truth = stats.norm.isf(1 / 10_000)
    assert np.median([tail.high for tail in tails if tail]) < 3 * truth
    assert np.median([tail.median for tail in tails if tail]) == pytest.approx(truth, rel=0.25)


def test_few_samples_are_reported_and_flagged() -> None:
    rng = np.random.default_rng(7)
    tail = fit(rng.lognormal(size=200))
    assert tail is not None
    assert tail.few
    assert tail.samples == 200
    assert tail.horizon == 2000
    assert fit(rng.lognormal(size=FIT_LEAST - 1)) is None
    assert not getattr(fit(rng.lognormal(size=TRUSTED)), "few", True)


def test_equal_maxima_have_no_tail() -> None:
    assert fit(np.full(1000, 15168.0)) is None
    assert fit(np.repeat([1.0, 2.0, 3.0], 400)) is None


@pytest.mark.parametrize("factor", [1e-6, 1e5])
def test_the_unit_of_the_data_does_not_matter(factor: float) -> None:
    maxima = np.random.default_rng(8).lognormal(size=1000)
    one, other = fit(maxima), fit(maxima * factor)
    assert one is not None
    assert other is not None
    for name in ("threshold", "scale", "low", "median", "high"):
        assert getattr(other, name) == pytest.approx(getattr(one, name) * factor, rel=1e-4)
    assert other.shape == one.shape


@pytest.mark.parametrize("shape", [-0.5, -0.02, 0.02, 0.6])
def test_the_density_is_scipys(shape: float) -> None:
    excess = np.array([0.0, 0.5, 3.0, 5.9, 6.1])
    expected = stats.genpareto.logpdf(excess, shape, scale=3.0)
    np.testing.assert_allclose(log_density(excess, shape, 3.0), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [-0.3, 0.1, 0.4])
def test_the_posterior_finds_the_parameters_that_scipy_finds(shape: float) -> None:
    excess = stats.genpareto.rvs(shape, scale=2.0, size=200, random_state=1)
    shapes, scales, weights = posterior(excess)
    fitted, _, fitted_scale = stats.genpareto.fit(excess, floc=0)
    assert weights.sum() == pytest.approx(1)
    # The prior pulls the shape a little towards heavier tails, and the scale gives way.
    assert fitted - 0.03 < weights @ shapes < fitted + 0.12
    assert weights @ scales == pytest.approx(fitted_scale, rel=0.15)


@pytest.mark.parametrize("shape", [-0.3, 0.1, 0.4])
def test_with_known_parameters_the_quantile_is_the_textbooks(shape: float) -> None:
    """P(max ≤ y) = exp(−m·S(y)) = level, so S(y) = −ln(level)/m."""
    known = (np.array([shape]), np.array([2.0]), np.array([1.0]))
    for level in (0.025, 0.5, 0.975):
        expected = stats.genpareto.isf(-np.log(level) / 1000, shape, scale=2.0)
        assert predictive_quantile(level, 1000, *known) == pytest.approx(expected, rel=1e-5)
