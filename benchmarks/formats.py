"""A report's prices against brute force, for every format: the logits KL of every fused group quantized alone.

For each scheme: the KL mass that the first k groups by price hold of what the first k by brute force hold, rank
agreement, and how many of the ten worst are priced within 35 % of their KL. A single KL holds what any change at that
depth costs by rounding, too, so that the mass by price and that floor stands beside. Then recipes that mix all formats,
drawn at random: how many estimates are within 35 % of the KL, and how many intervals cover it. Then recipes for budgets
of 4.5 to 8 bits a weight, chosen by prices as `quantaudit advise` does, and greedily by brute force. Exits with 1 where
a target is missed, and prints which.

    python benchmarks/formats.py [MODEL] [--evaluation-tokens N] [--samples N] [--dtype float32] [--schemes a,b]
        [--out RESULT.json]

It takes about as many forward passes over the evaluation tokens as the model has fused groups, for each scheme.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from brute_force import NEAR, RECIPES, TARGETS, Case, Scores, compare, compare_recipes
from budgets import WORSE, by_budget
from calibration import WITHIN

from quantaudit.common.choices import STANDARD_SCHEMES, of_any_group_size
from quantaudit.common.progress import Stages
from quantaudit.common.ranks.forked import forks_allowed
from quantaudit.measure.profile import load_profile
from quantaudit.pipeline.passes import measure_inputs, shared, simulate_inputs
from quantaudit.pipeline.prepare import prepare
from quantaudit.quant.schemes import Scheme
from quantaudit.settings import Settings
from quantaudit.simulate import evaluation
from quantaudit.simulate.experiment import Experiment, InputRanges
from quantaudit.simulate.logits.rounding_floor import RoundingFloor, rounding_floor
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.sensitivity.recipe_estimate import estimate_factor, estimate_of

FORMATS = (
    "int8_static_per_tensor",
    "fp8_e4m3_static_per_tensor",
    "int4_weights_group_128",
    "nvfp4",
    "mxfp4",
)
COVERED = 9
"""How many of ten intervals must hold the KL."""
LEVEL = 0.95


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    evaluation_tokens: int = 1024,
    samples: int | None = 96,
    corpus: str = "builtin",
    device: str = "auto",
    dtype: str = "auto",
    schemes: str = "standard",
    profile: Path | None = None,
    out: Path | None = None,
) -> None:
    """Report, brute force, compare. schemes: those that are simulated, and of which the formats above are compared."""
    settings = Settings.of(
        model=model,
        corpus=corpus,
        samples=samples,
        evaluation_tokens=evaluation_tokens,
        device=device,
        dtype=dtype,
        scheme_set=schemes,
    )
    subject = prepare(settings)
    measured = load_profile(profile) if profile else measure_inputs(subject)
    start = perf_counter()
    simulation = simulate_inputs(subject, measured)
    predicted = perf_counter() - start
    architecture = subject.loaded.architecture
    compared = [scheme for scheme in subject.chosen.schemes if _format(scheme) in FORMATS]
    experiment = Experiment(
        model=subject.loaded.model,
        architecture=architecture,
        samples=evaluation.select(subject.corpus.samples, evaluation_tokens),
        schemes=compared,
        ranges=InputRanges.measured(measured, compared, architecture.groups),
    )
    inside = [group for group in architecture.groups if group.layer is not None]
    case = Case(subject=subject, profile=measured, experiment=experiment.only(inside))
    floor = floor_of(case)
    start = perf_counter()
    tables = {scheme.name: by_group(case, scheme, simulation, floor) for scheme in compared}
    forced = perf_counter() - start
    result = {
        "model": subject.loaded.info.name,
        "fingerprint": subject.loaded.info.fingerprint,
        "tokens": sum(len(sample.ids) for sample in case.experiment.samples),
        "floor": dict(zip(floor.depths, floor.kl, strict=True)),
        "schemes": tables,
        "recipes": by_recipe(case, compared, simulation),
        "budgets": by_budget(case, compared, simulation, {name: table["kl"] for name, table in tables.items()}),
        "seconds": {"report": predicted, "brute force": forced},
    }
    result["missed"] = missed(result)
    show(result)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(1 if result["missed"] else 0)


def floor_of(case: Case) -> RoundingFloor:
    """What any change at all costs, by the depth at which it enters."""

    def measured(_stages: Stages) -> RoundingFloor:
        with case.subject.computed():
            experiment = case.experiment
            return rounding_floor(experiment.model, experiment.architecture.blocks, experiment.samples)

    return shared(case.subject, measured)


def by_group(case: Case, scheme: Scheme, simulation: Simulation, floor: RoundingFloor) -> dict[str, Any]:
    """KL of every group alone under one scheme, and what its price says, with and without the floor at its depth."""
    layers = {group.name: group.layer or 0 for group in case.groups}
    names = list(layers)
    kl = case.kls([case.mixed(name, {name: scheme}) for name in names])
    priced = {row.group: row.price for row in simulation.groups if row.scheme == scheme.name}
    prices: Scores = {name: price for name in names if (price := priced.get(name)) is not None}
    return {
        "price": compare(prices, kl),
        "price + floor": compare({name: price + floor.at(layers[name]) for name, price in prices.items()}, kl),
        "sum_of_kl": sum(kl.values()),
        "kl": kl,
        "prices": prices,
    }


def by_recipe(case: Case, schemes: list[Scheme], simulation: Simulation) -> list[dict[str, Any]]:
    """The first ten random mixtures of all formats whose KL is in range: KL, estimate, and its interval."""
    prices = {(row.group, row.scheme): row.price for row in simulation.groups}
    estimate, factor = estimate_of([simulation]), estimate_factor([simulation], LEVEL, None)
    rows = compare_recipes(case, prices, schemes)
    return [row | {"estimate": estimate.kl(row["sum"]), "factor": factor} for row in rows]


def covers(row: dict[str, Any]) -> bool:
    """Whether the interval of an estimate holds the KL."""
    return row["factor"] is not None and bool(abs(math.log(row["kl"] / row["estimate"])) <= math.log(row["factor"]))


def near(row: dict[str, Any]) -> bool:
    """Whether an estimate is near the KL."""
    return bool(abs(row["estimate"] / row["kl"] - 1) <= WITHIN)


def missed(result: dict[str, Any]) -> list[str]:
    """What falls short of the targets, in words."""
    shortfalls = []
    for scheme, table in result["schemes"].items():
        mass, within = table["price"]["mass_at_10"], table["price + floor"]["worst_ten_within_35_percent"]
        if not mass >= TARGETS["mass_at_10"]:
            shortfalls.append(f"{scheme}: KL mass at 10 is {mass:.3f}, below {TARGETS['mass_at_10']}")
        if within < NEAR:
            shortfalls.append(f"{scheme}: {within} of the ten worst groups are within 35 % of their KL, below {NEAR}")
    recipes = result["recipes"]
    for count, least, what in (
        (sum(map(near, recipes)), NEAR, "within 35 % of their KL"),
        (sum(map(covers, recipes)), COVERED, "covered by their interval"),
    ):
        if count < least * len(recipes) / RECIPES or not recipes:
            shortfalls.append(f"{count} of {len(recipes)} recipes of mixed formats are {what}")
    for row in result["budgets"]:
        ratio = row["kl"]["prices"] / row["kl"]["brute force"]
        if not ratio <= WORSE:
            shortfalls.append(f"at {row['budget']:g} bits the KL is {ratio:.3f} times that of brute force's choice")
    return shortfalls


def show(result: dict[str, Any]) -> None:
    """The report as a Markdown table on stdout."""
    floor = list(result["floor"].values())
    print(f"{result['model']}, {result['tokens']:,} tokens, rounding floor {floor[0]:.2e} to {floor[-1]:.2e} nats\n")
    titles = ("mass at 4", "8", "10", "16", "10, with floor", "Spearman", "worst ten within 35 %")
    print(f"| scheme | {' | '.join(titles)} | sum of KL | sum of prices |")
    print("|---" * (len(titles) + 3) + "|")
    for scheme, table in result["schemes"].items():
        row, held = table["price"], table["price + floor"]["mass_at_10"]
        masses = " | ".join(f"{row[f'mass_at_{k}']:.3f}" for k in (4, 8, 10, 16))
        within = table["price + floor"]["worst_ten_within_35_percent"]
        sums = f"{table['sum_of_kl']:.3f} | {row['sum']:.3f}"
        print(f"| {scheme} | {masses} | {held:.3f} | {row['spearman']:.3f} | {within} | {sums} |")
    print(f"\n{len(result['recipes'])} recipes of mixed formats:")
    for row in result["recipes"]:
        print(
            f"  {row['groups']:4} groups: KL {row['kl']:.3f}, estimate {row['estimate']:.3f}, "
            f"{'covered' if covers(row) else 'not covered'} by a factor of {row['factor'] or math.nan:.2f}"
        )
    print("\n| budget, bits a weight | KL by prices | estimated | KL by brute force | ratio | groups that differ |")
    print("|---|---|---|---|---|---|")
    for row in result["budgets"]:
        own, forced = row["kl"]["prices"], row["kl"]["brute force"]
        print(
            f"| {row['budget']:g} | {own:.4f} | {row['estimate']:.4f} | {forced:.4f} | {own / forced:.3f} "
            f"| {row['differ']} |"
        )
    print("\nseconds: " + ", ".join(f"{what} {spent:.0f}" for what, spent in result["seconds"].items()))
    print("\n".join(result["missed"]) or "all targets met")


def _format(scheme: Scheme) -> str:
    """Whatever group size fits the model."""
    return next(
        (name for name in STANDARD_SCHEMES if of_any_group_size(name) == of_any_group_size(scheme.name)), scheme.name
    )


if __name__ == "__main__":
    with forks_allowed():
        typer.run(main)
