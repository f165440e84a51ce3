"""Does the peak predict the error? Rank correlations over fused groups, with bootstrap intervals, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from quantaudit.simulate.records import CorrelationRow, Outcome, SchemeInfo, Simulation

FEWEST = 8
"""Groups below which a rank correlation says nothing."""
RESAMPLES = 500
OUTCOMES: dict[Outcome, str] = {
    "damage": "block damage",
    "sqnr_db": "SQNR",
    "bulk_sqnr_db": "bulk SQNR",
    "relative_mae": "relative MAE",
    "zeroed_fraction": "zeroed fraction",
    "effective_levels": "effective levels",
}


def correlate(simulation: Simulation, amax: Mapping[str, float | None], *, seed: int = 0) -> list[CorrelationRow]:
    """Peak against each error, for every scheme, over all groups and within each projection.

    amax: by group, of its input on the evaluation split. Tensor errors exist for static schemes only.
    """
    rows: list[CorrelationRow] = []
    for scheme in simulation.schemes:
        errors = {
            row.group: row.model_dump()
            for row in simulation.sites
            if row.scheme == scheme.name and row.observer == scheme.observer
        }
        groups = [row for row in simulation.groups if row.scheme == scheme.name and row.layer is not None]
        scopes = ["all", *sorted({row.projection for row in groups})]
        for outcome in OUTCOMES:
            values = {
                row.group: row.damage if outcome == "damage" else errors.get(row.group, {}).get(outcome)
                for row in groups
            }
            for scope in scopes:
                names = [row.group for row in groups if scope in ("all", row.projection)]
                pairs = [(amax.get(name), values[name]) for name in names]
                row = _row(scheme, scope, outcome, _paired(pairs), seed)
                if row is not None:
                    rows.append(row)
    return rows


def bootstrap_interval(
    x: NDArray[np.float64], y: NDArray[np.float64], statistic: str, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of Spearman's ρ or Kendall's τ over resampled pairs. x, y: float64 [n]."""
    correlation: Any = stats.spearmanr if statistic == "spearman" else stats.kendalltau
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(x), (RESAMPLES, len(x)))
    with np.errstate(invalid="ignore"):
        values = [correlation(x[draw], y[draw]).statistic for draw in draws if np.ptp(x[draw]) and np.ptp(y[draw])]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _paired(pairs: Sequence[tuple[float | None, float | None]]) -> NDArray[np.float64]:
    return np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)


def _row(
    scheme: SchemeInfo, scope: str, outcome: Outcome, pairs: NDArray[np.float64], seed: int
) -> CorrelationRow | None:
    """None where there are too few groups, or where one side does not vary."""
    if len(pairs) < FEWEST or not np.ptp(pairs, axis=0).all():
        return None
    x, y = pairs[:, 0], pairs[:, 1]
    rho, tau = float(stats.spearmanr(x, y).statistic), float(stats.kendalltau(x, y).statistic)
    rho_low, rho_high = bootstrap_interval(x, y, "spearman", seed)
    tau_low, tau_high = bootstrap_interval(x, y, "kendall", seed)
    return CorrelationRow(
        scheme=scheme.name,
        scope=scope,
        predictor="amax",
        outcome=outcome,
        n=len(pairs),
        spearman=rho,
        spearman_low=rho_low,
        spearman_high=rho_high,
        kendall=tau,
        kendall_low=tau_low,
        kendall_high=tau_high,
        reading=read(scheme.title, scope, outcome, rho, rho_low, rho_high),
    )


def read(scheme: str, scope: str, outcome: Outcome, rho: float, low: float, high: float) -> str:
    """One plain sentence. A correlation whose interval holds zero is called unproven, whatever its size."""
    where = f"{scheme}, over all groups" if scope == "all" else f"{scheme}, within {scope} inputs"
    numbers = f"(ρ = {_signed(rho)}, 95% interval {_signed(low)} to {_signed(high)})"
    name = OUTCOMES[outcome]
    if low <= 0 <= high:
        return f"{where}: the peak does not tell the {name} {numbers}."
    strength = "closely" if abs(rho) >= 0.8 else "in part" if abs(rho) >= 0.4 else "only weakly"
    direction = "higher" if rho > 0 else "lower"
    return f"{where}: a higher peak goes with a {direction} {name}, {strength} {numbers}."


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if not math.isnan(value) else "unknown"
