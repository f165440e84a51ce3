"""Predictions against brute force: the logits KL of every fused group quantized alone, static INT8, on any checkpoint.

Every ranking is set against that truth: the KL mass that its first k groups hold, its rank agreement, and the KL of the
model when its first k groups stay unquantized, as a ratio to leaving brute force's. Prices are also compared as
numbers: with the KL of the ten worst groups, and with that of ten mixed recipes drawn at random. Exits with 1 when
block damage or the price list misses a target, and prints which.

    python benchmarks/brute_force.py [MODEL] [--evaluation-tokens N] [--samples N] [--out RESULT.json] [--chart C.svg]

It takes about as many forward passes over the evaluation tokens as the model has fused groups, and forty. Costs are
processor time on a CPU, so that other work on the machine does not count, and wall time on a GPU. `--profile` uses a
profile measured before; `--truth RESULT.json` takes the KLs from an earlier result and times a few groups again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import typer
from calibration import MIXED, SINGLE, WITHIN, mixed_recipes, write_chart
from compressed_tensors.quantization import QuantizationStrategy
from overhead import seconds
from scipy.stats import spearmanr

from quantaudit.common.progress import Stages
from quantaudit.errors import FormatError
from quantaudit.measure.profile import Profile, load_profile
from quantaudit.model.sites import Group
from quantaudit.pipeline.passes import measure_inputs, shared
from quantaudit.pipeline.prepare import AuditInputs, check_profile, prepare
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import FP8_E4M3, INT8_ASYMMETRIC, INT8_DYNAMIC, INT8_STATIC, Scheme
from quantaudit.settings import Settings
from quantaudit.simulate import evaluation
from quantaudit.simulate.experiment import Experiment, InputRanges
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.logits.rounding_floor import RoundingFloor, rounding_floor
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.records import RecipeRow
from quantaudit.simulate.replay.backward_pass import record_forward
from quantaudit.simulate.replay.linear_sensitivity import PriceList
from quantaudit.simulate.replay.replay_groups import replay_groups
from quantaudit.simulate.sensitivity.prices import price_groups
from quantaudit.simulate.sensitivity.recipe_estimate import Simulated, fit_estimate
from quantaudit.simulate.tensors import error_rows

MASS_AT, LEFT_ALONE = (4, 8, 10, 16), (4, 8, 16)
TARGETS = {"mass_at_10": 0.98, "left_alone_ratio": 1.10, "damage_cost": 1 / 20, "price_cost": 1 / 10}
JUDGED = ("damage", "price")
NEAR = 8
"""How many of ten estimates must be within 35 % of the KL."""
RECIPES, DRAWS, RECIPE_KL = 10, 40, (0.02, 1.0)
"""Mixed recipes compared, drawn at most, and the range of KL, nats per token, in which they count."""
TIMED = 5
"""Groups on which brute force is timed when its KLs are given already."""

_ASYMMETRIC = replace(
    INT8_STATIC, name="int8_asymmetric_static_per_tensor", title="asymmetric", input_activations=INT8_ASYMMETRIC
)
_FP8 = replace(
    INT8_STATIC,
    name="fp8_e4m3_static_per_tensor",
    title="FP8",
    weights=FP8_E4M3.model_copy(update={"strategy": QuantizationStrategy.CHANNEL}),
    input_activations=FP8_E4M3,
)
_WEIGHTS = replace(INT8_STATIC, name="weights_only", title="weights only", input_activations=None, observer=None)
FIVE = (INT8_STATIC, INT8_DYNAMIC, _ASYMMETRIC, _FP8, _WEIGHTS)
"""What the price pass prices side by side while it is timed."""

Scores = dict[str, float]
"""By group name; higher means worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measured model with the experiment on the groups inside its decoder blocks."""

    subject: AuditInputs
    profile: Profile
    experiment: Experiment

    @property
    def groups(self) -> tuple[Group, ...]:
        """Fused groups inside the decoder blocks."""
        return self.experiment.groups

    def plan(self, name: str, groups: Sequence[str]) -> Plan:
        """Static INT8 on the named groups, nothing elsewhere."""
        return self.mixed(name, dict.fromkeys(groups, INT8_STATIC))

    def mixed(self, name: str, schemes: Mapping[str, Scheme]) -> Plan:
        """Each named group under its scheme."""
        return Plan.of_groups(self.experiment, name=name, title=name, schemes=schemes)

    def spent(self, work: Callable[[], object]) -> float:
        """Seconds that a piece of work takes: of the processor, or on a GPU by the clock."""
        if self.subject.loaded.device.type != "cpu":
            return seconds(work)
        start = process_time()
        work()
        return process_time() - start

    def kls(self, plans: Sequence[Plan]) -> Scores:
        """Logits KL of every plan, nats per token; plans that are not finite are left out."""

        def scored(_stages: Stages) -> list[RecipeRow]:
            with self.subject.computed():
                return score_plans(self.experiment.model, self.experiment.samples, plans)

        rows = shared(self.subject, scored)
        return {row.name: row.kl for row in rows if row.kl is not None and math.isfinite(row.kl) and not row.nonfinite}


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    evaluation_tokens: int = 4096,
    samples: int | None = None,
    corpus: str = "builtin",
    device: str = "auto",
    profile: Path | None = None,
    truth: Path | None = None,
    out: Path | None = None,
    chart: Path | None = None,
) -> None:
    """Measure, compare, report."""
    settings = Settings.of(
        model=model, corpus=corpus, samples=samples, evaluation_tokens=evaluation_tokens, device=device
    )
    case = prepare_case(settings, profile)
    kl, brute_seconds = stored_truth(truth, case) if truth else brute_force(case)
    scores, prices, floor, costs = rankings(case)
    estimates = {name: price + floor.at(_layer(case, name)) for name, price in scores["price"].items()}
    scores["price + floor"] = estimates
    table = {name: compare(values, kl) for name, values in scores.items()}
    curve = left_alone(case, {"brute force": kl, **scores}, list(kl))
    whole = sum(scores["price"].values()), curve["brute force"]["0"]
    recipes = with_estimates(compare_recipes(case, prices, (INT8_STATIC, INT8_DYNAMIC)), whole, floor.at(0))
    result = {
        "model": case.subject.loaded.info.name,
        "fingerprint": case.subject.loaded.info.fingerprint,
        "corpus": case.subject.corpus.info.name,
        "tokens": sum(len(sample.ids) for sample in case.experiment.samples),
        "samples": [sample.id for sample in case.experiment.samples],
        "scheme": INT8_STATIC.name,
        "seconds": {"brute_force": round(brute_seconds, 1), **{k: round(v, 1) for k, v in costs.items()}},
        "cost": {name: round(spent / brute_seconds, 4) for name, spent in costs.items()},
        "rankings": table,
        "left_alone_kl": curve,
        "floor": dict(zip(floor.depths, floor.kl, strict=True)),
        "recipes": recipes,
        "kl": kl,
        "scores": scores,
    }
    result["missed"] = missed(result)
    show(result)
    if chart:
        singles = [{"what": SINGLE, "estimate": estimates[name], "kl": kl[name]} for name in kl if name in estimates]
        mixed = [{"what": MIXED, "estimate": row["estimate"], "kl": row["kl"]} for row in recipes]
        write_chart([row for row in (*singles, *mixed) if min(row["estimate"], row["kl"]) > 0], chart)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(1 if result["missed"] else 0)


def prepare_case(settings: Settings, profile: Path | None) -> Case:
    """Load, measure unless a profile is given, and calibrate."""
    subject = prepare(settings)
    measured = load_profile(profile) if profile else measure_inputs(subject)
    check_profile(subject, measured)
    architecture = subject.loaded.architecture
    experiment = Experiment(
        model=subject.loaded.model,
        architecture=architecture,
        samples=evaluation.select(subject.corpus.samples, settings.simulate.evaluation_tokens),
        schemes=FIVE,
        ranges=InputRanges.measured(measured, FIVE, architecture.groups),
    )
    inside = [group for group in architecture.groups if group.layer is not None]
    return Case(subject=subject, profile=measured, experiment=experiment.only(inside))


def brute_force(case: Case) -> tuple[Scores, float]:
    """KL of every fused group quantized alone, and the seconds that took."""
    kl: Scores = {}
    plans = [case.plan(group.name, [group.name]) for group in case.groups]
    spent = case.spent(lambda: kl.update(case.kls(plans)))
    return kl, spent


def stored_truth(path: Path, case: Case) -> tuple[Scores, float]:
    """The same from an earlier result, which must be of these weights and tokens."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    same = stored["fingerprint"] == case.subject.loaded.info.fingerprint
    if not same or stored["samples"] != [sample.id for sample in case.experiment.samples]:
        raise FormatError("this truth is of other weights or tokens", where=str(path))
    plans = [case.plan(group.name, [group.name]) for group in case.groups[:: -(-len(case.groups) // TIMED)]]
    spent = case.spent(lambda: case.kls(plans))
    return dict(stored["kl"]), spent * (len(case.groups) + 1) / (len(plans) + 1)


def rankings(case: Case) -> tuple[dict[str, Scores], PriceList, RoundingFloor, dict[str, float]]:
    """Scores by ranking; prices of all five schemes; the rounding floor; seconds of each.

    A ranking by damage needs no replay of the weights alone, which a report adds.
    """
    effects: list[GroupEffect] = []
    prices: PriceList = {}
    floors: list[RoundingFloor] = []
    static, blocks = replace(case.experiment, schemes=[INT8_STATIC]), case.experiment.architecture.blocks

    def damage(weights_only: bool) -> list[GroupEffect]:
        return replay_groups(static, record_forward(static), weights_only=weights_only)

    with case.subject.computed():
        costs = {
            "damage": case.spent(lambda: effects.extend(damage(False))),
            "damage_and_weights_only": case.spent(lambda: damage(True)),
            "price_five_schemes": case.spent(lambda: prices.update(price_groups(case.experiment))),
            "rounding_floor": case.spent(lambda: floors.append(rounding_floor(static.model, blocks, static.samples))),
        }
    errors = {
        row.group: row
        for row in error_rows(case.profile)
        if row.scheme == INT8_STATIC.name and row.observer == INT8_STATIC.observer
    }
    names = [group.name for group in case.groups]
    scores: dict[str, dict[str, float | None]] = {
        "damage": {effect.group.name: effect.damage for effect in effects},
        "price": {name: prices[name, INT8_STATIC.name] for name in names},
        "sqnr": {name: _negative(errors[name].sqnr_db) for name in names if name in errors},
        "amax": {group.name: _amax(case.experiment.ranges.of(INT8_STATIC, group)) for group in case.groups},
        "relative_mae": {name: errors[name].relative_mae for name in names if name in errors},
        "zeroed_fraction": {name: errors[name].zeroed_fraction for name in names if name in errors},
    }
    return {kind: _finite(values) for kind, values in scores.items()}, prices, floors[0], costs


def compare_recipes(case: Case, prices: PriceList, schemes: Sequence[Scheme]) -> list[dict[str, Any]]:
    """The first ten random mixtures whose KL is in range, or as many as the draws give: Σ prices, KL."""
    names = [group.name for group in case.groups]
    drawn = islice(mixed_recipes(names, schemes), DRAWS)
    rows: list[dict[str, Any]] = []
    while len(rows) < RECIPES and (some := dict(enumerate(islice(drawn, RECIPES // 2)))):
        kls = case.kls([case.mixed(str(i), recipe) for i, recipe in some.items()])
        for i, recipe in some.items():
            kl = kls.get(str(i), math.nan)
            if RECIPE_KL[0] <= kl <= RECIPE_KL[1]:
                total = sum(prices[name, scheme.name] or math.nan for name, scheme in recipe.items())
                rows.append({"groups": len(recipe), "sum": total, "kl": kl})
    return rows[:RECIPES]


def with_estimates(rows: Sequence[Mapping[str, Any]], whole: Simulated, floor: float) -> list[dict[str, Any]]:
    """The rows with the KL that gate, advise and card would estimate, had they simulated the recipe that quantizes
    everything (`whole`) and the other rows.
    """
    pairs = [(row["sum"], row["kl"]) for row in rows]
    return [
        {**row, "estimate": fit_estimate([whole, *pairs[:i], *pairs[i + 1 :]], floor).kl(row["sum"])}
        for i, row in enumerate(rows)
    ]


def log_error(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean |log ratio| of recipes' estimates to their KL."""
    return float(np.mean([abs(math.log(row[key] / row["kl"])) for row in rows]))


def _layer(case: Case, name: str) -> int:
    return next(group.layer for group in case.groups if group.name == name and group.layer is not None)


def near(rows: Sequence[Mapping[str, Any]], key: str) -> int:
    """How many recipes' estimates are within 35 % of their KL."""
    return sum(abs(row[key] / row["kl"] - 1) <= WITHIN for row in rows)


def _finite(values: Mapping[str, float | None]) -> Scores:
    return {name: value for name, value in values.items() if value is not None}


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _amax(qparams: QParams | None) -> float | None:
    return None if qparams is None else max(-qparams.min, qparams.max)


def worst(scores: Mapping[str, float], k: int) -> list[str]:
    """The k groups of the highest scores, worst first."""
    return sorted(scores, key=lambda name: -scores[name])[:k]


def compare(scores: Scores, kl: Scores) -> dict[str, float]:
    """KL mass at k against brute force's, Spearman's ρ, and how far a score is from the KL itself."""
    ranked = [name for name in kl if name in scores]
    masses = {
        f"mass_at_{k}": sum(kl.get(name, 0.0) for name in worst(scores, k)) / sum(kl[name] for name in worst(kl, k))
        for k in MASS_AT
    }
    rho = spearmanr([scores[name] for name in ranked], [kl[name] for name in ranked]).statistic
    ten = worst(kl, 10)
    within = sum(abs(scores.get(name, math.inf) / kl[name] - 1) <= WITHIN for name in ten)
    ratio = float(np.median([scores.get(name, 0.0) / kl[name] for name in ten]))
    return {
        **{key: round(value, 4) for key, value in masses.items()},
        "spearman": round(float(rho), 4),
        "worst_ten_within_35_percent": within,
        "worst_ten_median_ratio": round(ratio, 4),
        "sum": round(sum(scores.values()), 4),
    }


def left_alone(case: Case, scores: Mapping[str, Scores], names: Sequence[str]) -> dict[str, Scores]:
    """KL of the model by ranking and k, when its k worst groups stay unquantized and all others are static INT8."""
    kept = {
        (kind, k): [name for name in names if name not in worst(values, k)]
        for kind, values in scores.items()
        for k in (0, *LEFT_ALONE)
    }
    # Rankings that leave the same groups alone share one run.
    different = {tuple(groups): f"plan {i}" for i, groups in enumerate(kept.values())}
    kls = case.kls([case.plan(name, groups) for groups, name in different.items()])
    return {kind: {str(k): kls[different[tuple(kept[kind, k])]] for k in (0, *LEFT_ALONE)} for kind in scores}


def missed(result: Mapping[str, Any]) -> list[str]:
    """What falls short of the targets, in words."""
    shortfalls = []
    oracle = result["left_alone_kl"]["brute force"]
    for kind in JUDGED:
        mass = result["rankings"][kind]["mass_at_10"]
        if not mass >= TARGETS["mass_at_10"]:
            shortfalls.append(f"{kind}: KL mass at 10 is {mass:.3f}, below {TARGETS['mass_at_10']}")
        for k in map(str, LEFT_ALONE):
            ratio = result["left_alone_kl"][kind][k] / oracle[k]
            if not ratio <= TARGETS["left_alone_ratio"]:
                shortfalls.append(f"{kind}: leaving {k} alone gives {ratio:.2f} times brute force's KL")
    count = result["rankings"]["price"]["worst_ten_within_35_percent"]
    if count < NEAR:
        shortfalls.append(f"price: {count} of the ten worst groups are within 35 % of their KL, fewer than {NEAR}")
    recipes = result["recipes"]
    if near(recipes, "estimate") < NEAR * len(recipes) / RECIPES:
        shortfalls.append(
            f"price: {near(recipes, 'estimate')} of {len(recipes)} mixed recipes are within 35 % of their KL"
        )
    for kind, target in (("damage", "damage_cost"), ("price_five_schemes", "price_cost")):
        if not result["cost"][kind] <= TARGETS[target]:
            shortfalls.append(f"{kind}: costs {result['cost'][kind]:.3f} of brute force, above {TARGETS[target]:.3f}")
    return shortfalls


def show(result: Mapping[str, Any]) -> None:
    """The report as Markdown tables on stdout."""
    print(f"{result['model']}: {len(result['kl'])} fused groups, {result['tokens']:,} tokens, {result['scheme']}")
    print(f"sum of single KLs {sum(result['kl'].values()):.3f}, all together {_left(result, 'brute force', 0):.3f}\n")
    heads = [*(f"mass at {k}" for k in MASS_AT), "Spearman", *(f"KL leaving {k}" for k in LEFT_ALONE)]
    print("| ranking by | " + " | ".join(heads) + " |\n|---|" + "---|" * len(heads))
    for kind in result["left_alone_kl"]:
        row = result["rankings"].get(kind)
        cells = [f"{row[f'mass_at_{k}']:.3f}" for k in MASS_AT] if row else ["1"] * len(MASS_AT)
        cells += [f"{row['spearman']:.2f}" if row else "1"]
        cells += [f"{_left(result, kind, k):.3f}" for k in LEFT_ALONE]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    price = result["rankings"]["price"]
    print(
        f"\nprices of the ten worst: {price['worst_ten_within_35_percent']} within 35 % of the KL, "
        f"median ratio {price['worst_ten_median_ratio']:.2f}; all together {price['sum']:.3f}"
    )
    recipes = result["recipes"]
    print(
        f"{len(recipes)} mixed recipes with a KL of {RECIPE_KL[0]} to {RECIPE_KL[1]:g} nats, of {DRAWS} drawn at most:"
    )
    for row in recipes:
        print(f"  {row['groups']:4} groups: KL {row['kl']:.3f}, sum {row['sum']:.3f}, estimate {row['estimate']:.3f}")
    for key, name in (("estimate", "estimates"), ("sum", "plain sums")):
        print(f"  {name}: {near(recipes, key)} within 35 %, mean |log ratio| {log_error(recipes, key):.3f}")
    print(f"rounding floor by block: {result['floor']}")
    print(f"cost, brute force = 1: {result['cost']}")
    print("\n".join(result["missed"]) or "all targets met")


def _left(result: Mapping[str, Any], kind: str, k: int) -> float:
    return float(result["left_alone_kl"][kind][str(k)])


if __name__ == "__main__":
    typer.run(main)
