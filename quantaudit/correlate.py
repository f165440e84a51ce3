"""Does the peak predict the error? Rank correlations over fused groups, with bootstrap intervals, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from quantaudit.measure.profile import Profile
from quantaudit.simulate.records import CorrelationRow, Outcome, Predictor, SchemeInfo, Simulation
from quantaudit.stats.distribution import Distribution, finite
from quantaudit.stats.site import summary

FEWEST = 8
"""Groups below which a rank correlation says nothing."""
RESAMPLES = 500
PARTIAL = "partial"
"""Scope of a correlation over all groups after each projection's mean rank is taken off: what the predictor says
beyond which projection a group is."""
OUTCOMES: dict[Outcome, str] = {
    "damage": "block damage",
    "price": "price",
    "kl": "KL of the group alone",
    "sqnr_db": "SQNR",
    "bulk_sqnr_db": "bulk SQNR",
    "relative_mae": "relative MAE",
    "zeroed_fraction": "zeroed fraction",
    "effective_levels": "number of effective levels",
}
PREDICTORS: dict[Predictor, str] = {"amax": "peak", "peak_over_rms": "peak over RMS", "kurtosis": "kurtosis"}
FEW_OUTCOMES: tuple[Outcome, ...] = ("damage", "price", "kl", "relative_mae", "zeroed_fraction")
"""Outcomes of predictors other than the peak, which are given over all groups only: a table must stay readable."""

Values = Mapping[str, float | None]
"""By group name."""
Floats = NDArray[np.float64]


def predictors(profile: Profile) -> dict[Predictor, dict[str, float | None]]:
    """Each of PREDICTORS by group, of the group's input on the evaluation split, which errors are reported on."""
    values: dict[Predictor, dict[str, float | None]] = {name: {} for name in PREDICTORS}
    for site in profile.sites:
        evaluation = profile.split(site.name, "evaluation") if site.kind == "linear_input" else None
        if evaluation is not None:
            group, described = site.name.removesuffix(".input"), summary(evaluation)
            values["amax"][group] = _finite(described.amax)
            values["peak_over_rms"][group] = _finite(described.amax / described.rms if described.rms else math.nan)
            values["kurtosis"][group] = _finite(kurtosis(evaluation.distribution))
    return values


def kurtosis(distribution: Distribution) -> float:
    """Fourth central moment over the squared variance, exact from the counts: 3 for a Gaussian. NaN without spread."""
    values, counts = finite(distribution)
    if not counts.sum():
        return math.nan
    wide = values.astype(np.float64)
    centred = wide - wide @ counts / counts.sum()
    variance = float(centred**2 @ counts / counts.sum())
    return float(centred**4 @ counts / counts.sum()) / variance**2 if variance else math.nan


def correlate(
    simulation: Simulation,
    measured: Mapping[Predictor, Values],
    *,
    seed: int = 0,
) -> list[CorrelationRow]:
    """Predictors against errors for every scheme: the peak over all groups, within each projection, and apart from
    the projection; the others over all groups and apart from the projection.

    measured: by predictor, then group. Tensor errors exist for static schemes only, and the KL of single groups only
    for a sample of them, if any.
    """
    rows: list[CorrelationRow] = []
    for scheme in simulation.schemes:
        outcomes = _outcomes(simulation, scheme)
        projections = {
            row.group: row.projection
            for row in simulation.groups
            if row.scheme == scheme.name and row.layer is not None
        }
        scopes = ["all", PARTIAL, *sorted(set(projections.values()))]
        for predictor, values in measured.items():
            for outcome, errors in outcomes.items():
                if predictor != "amax" and outcome not in FEW_OUTCOMES:
                    continue
                for scope in scopes if predictor == "amax" else scopes[:2]:
                    names = [name for name, projection in projections.items() if scope in ("all", PARTIAL, projection)]
                    row = _row(scheme, scope, predictor, outcome, _Pairs.of(names, values, errors, projections), seed)
                    if row is not None:
                        rows.append(row)
    return rows


def _outcomes(simulation: Simulation, scheme: SchemeInfo) -> dict[Outcome, Values]:
    errors = [row for row in simulation.sites if row.scheme == scheme.name and row.observer == scheme.observer]
    groups = [row for row in simulation.groups if row.scheme == scheme.name]
    # A price that was fitted to damage would only repeat it.
    priced = simulation.evaluation.price_source != "damage"
    by_outcome: dict[Outcome, Values] = {
        "damage": {row.group: row.damage for row in groups},
        "price": {row.group: row.price for row in groups if priced},
        # Groups that were simulated for another purpose are no fair sample: see `simulate.single.spread`.
        "kl": {row.group: row.kl for row in groups if row.sampled},
        "sqnr_db": {row.group: row.sqnr_db for row in errors},
        "bulk_sqnr_db": {row.group: row.bulk_sqnr_db for row in errors},
        "relative_mae": {row.group: row.relative_mae for row in errors},
        "zeroed_fraction": {row.group: row.zeroed_fraction for row in errors},
        "effective_levels": {row.group: row.effective_levels for row in errors},
    }
    return by_outcome


class _Pairs:
    """Groups of which both sides are known: x, y float64 [n], and the projection of each as an integer [n].

    groups: how many there are, known or not.
    """

    def __init__(self, x: Floats, y: Floats, kind: NDArray[np.int64], groups: int) -> None:
        self.x, self.y, self.kind, self.groups = x, y, kind, groups

    @classmethod
    def of(cls, names: Sequence[str], x: Values, y: Values, projections: Mapping[str, str]) -> _Pairs:
        """Those of `names` for which both sides are a number, in that order; projections: by group."""
        complete = [(x[n], y[n], projections[n]) for n in names if x.get(n) is not None and y.get(n) is not None]
        kinds = sorted({kind for _, _, kind in complete})
        return cls(
            np.array([a for a, _, _ in complete], np.float64),
            np.array([b for _, b, _ in complete], np.float64),
            np.array([kinds.index(kind) for _, _, kind in complete], np.int64),
            len(names),
        )


def spearman(x: Floats, y: Floats, kind: NDArray[np.int64] | None = None) -> Floats:
    """Spearman's ρ of each row, [draws]; with `kind`, of the ranks less their mean within each kind. x, y, kind:
    [draws, n]. NaN where a side does not vary.
    """
    a, b = (stats.rankdata(side, axis=1) for side in (x, y))
    if kind is None:
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    else:
        a, b = _within(a, kind), _within(b, kind)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    rho: Floats = np.divide((a * b).sum(1), norm, out=np.full(len(a), np.nan), where=norm > 1e-9)
    return rho


def kendall(x: Floats, y: Floats, kind: NDArray[np.int64] | None = None) -> Floats:
    """Kendall's τ-b of each row, [draws]; with `kind`, over pairs of one kind only. NaN where a side does not vary."""
    tau = np.empty(len(x))
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        left, right = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
        if kind is not None:
            same = kind[i][:, None] == kind[i]
            left, right = left * same, right * same
        norm = math.sqrt(float((left * left).sum()) * float((right * right).sum()))
        tau[i] = float((left * right).sum()) / norm if norm else math.nan
    return tau


def resampled_kendall(x: Floats, y: Floats, draws: NDArray[np.int64], kind: NDArray[np.int64] | None = None) -> Floats:
    """`kendall` of x[draws], y[draws] and kind[draws], to the last bit, from one comparison of all pairs.

    x, y, kind: [n]; draws: [draws, n]. With w the times that each pair was drawn, sums over pairs are wᵀMw, of integers
    that float64 holds exactly.
    """
    left, right = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    if kind is not None:
        same = kind[:, None] == kind
        left, right = left * same, right * same
    counts = np.stack([np.bincount(draw, minlength=len(x)) for draw in draws]).astype(np.float64)
    concordant, a, b = (((counts @ form) * counts).sum(1) for form in (left * right, left * left, right * right))
    norm = np.sqrt(a * b)
    tau: Floats = np.divide(concordant, norm, out=np.full(len(draws), np.nan), where=norm > 0)
    return tau


def resampled_spearman(x: Floats, y: Floats, draws: NDArray[np.int64], kind: NDArray[np.int64] | None = None) -> Floats:
    """`spearman` of x[draws], y[draws] and kind[draws]; arguments as for `resampled_kendall`."""
    return spearman(x[draws], y[draws], None if kind is None else kind[draws])


STATISTICS = {"spearman": resampled_spearman, "kendall": resampled_kendall}


def bootstrap_interval(
    x: Floats, y: Floats, statistic: str, seed: int, kind: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """95 % percentile interval of Spearman's ρ or Kendall's τ over resampled pairs. x, y: float64 [n]."""
    draws = np.random.default_rng(seed).integers(0, len(x), (RESAMPLES, len(x)))
    values = STATISTICS[statistic](x, y, draws, kind)
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _within(ranks: Floats, kind: NDArray[np.int64]) -> Floats:
    """Ranks [draws, n] less the mean rank of their kind in their row."""
    left = ranks.copy()
    for one in np.unique(kind):
        mine = kind == one
        count = mine.sum(1, keepdims=True)
        mean = np.divide((ranks * mine).sum(1, keepdims=True), count, out=np.zeros((len(ranks), 1)), where=count > 0)
        left -= mean * mine
    return left


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(
    scheme: SchemeInfo, scope: str, predictor: Predictor, outcome: Outcome, pairs: _Pairs, seed: int
) -> CorrelationRow | None:
    """None where there are too few groups, or where one side does not vary."""
    if len(pairs.x) < FEWEST or not np.ptp(pairs.x) or not np.ptp(pairs.y):
        return None
    kind = pairs.kind if scope == PARTIAL else None
    batch = (pairs.x[None], pairs.y[None], None if kind is None else kind[None])
    rho, tau = float(spearman(*batch)[0]), float(kendall(*batch)[0])
    if math.isnan(rho) or math.isnan(tau):
        return None
    rho_low, rho_high = bootstrap_interval(pairs.x, pairs.y, "spearman", seed, kind)
    tau_low, tau_high = bootstrap_interval(pairs.x, pairs.y, "kendall", seed, kind)
    return CorrelationRow(
        scheme=scheme.name,
        scope=scope,
        predictor=predictor,
        outcome=outcome,
        n=len(pairs.x),
        spearman=rho,
        spearman_low=rho_low,
        spearman_high=rho_high,
        kendall=tau,
        kendall_low=tau_low,
        kendall_high=tau_high,
        reading=read(
            scheme.title, scope, outcome, rho, rho_low, rho_high, predictor, rests_on=(len(pairs.x), pairs.groups)
        ),
    )


def read(
    scheme: str,
    scope: str,
    outcome: Outcome,
    rho: float,
    low: float,
    high: float,
    predictor: Predictor = "amax",
    *,
    rests_on: tuple[int, int] = (0, 0),
) -> str:
    """One plain sentence. A correlation whose interval holds zero is called unproven, whatever its size.

    rests_on: how many of the scope's groups it is about, and how many there are; named where they are not all.
    """
    count, groups = rests_on
    some = f"{count} of {groups} " if count < groups else ""
    places = {
        "all": f"over {some or 'all '}groups",
        PARTIAL: "between groups of one projection" + (f", {some}in all" if some else ""),
    }
    where = f"{scheme}, {places.get(scope) or f'within {some}{scope} inputs'}"
    numbers = f"(ρ = {_signed(rho)}, 95% interval {_signed(low)} to {_signed(high)})"
    name, error = PREDICTORS[predictor], OUTCOMES[outcome]
    if low <= 0 <= high:
        return f"{where}: the {name} does not tell the {error} {numbers}."
    strength = "closely" if abs(rho) >= 0.8 else "in part" if abs(rho) >= 0.4 else "only weakly"
    direction = "higher" if rho > 0 else "lower"
    return f"{where}: a higher {name} goes with a {direction} {error}, {strength} {numbers}."


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if not math.isnan(value) else "unknown"
