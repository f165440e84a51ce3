"""Advice against brute force: the same menu, every option of every group simulated alone, then a greedy choice.

    python benchmarks/advise.py [MODEL] [--recipe recipes/w8a8_static.yaml] [--evaluation-tokens N] [--profile P]

The greedy one gives every group its best option in the recipe's own format, then takes groups out of it by the KL that
this saves for a share of the MACs. Exits with 1 where advice is more than 5 % worse at a share, or costs over a tenth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time

from quantaudit.advise.candidates import Candidate, Choice, find_candidates
from quantaudit.advise.goal import Offers
from quantaudit.advise.knapsack import cheapest
from quantaudit.common.files import write_text
from quantaudit.common.resources import resource_dir
from quantaudit.measure.profile import Profile, load_profile
from quantaudit.pipeline.passes import measure_inputs
from quantaudit.pipeline.prepare import AuditInputs, prepare
from quantaudit.pipeline.settings_of_profile import settings_of_profile
from quantaudit.recipe.digest import scheme_digest
from quantaudit.recipe.parse import read_recipe
from quantaudit.recipe.resolve import resolve
from quantaudit.recipe.resolved import ResolvedRecipe
from quantaudit.settings import Settings
from quantaudit.simulate import evaluation
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.opened_recipe import OpenedRecipe
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.quantized.recipe_plan import recipe_plan

SHARES = (0.5, 0.6, 0.75, 0.85)
WORSE, COST = 1.05, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is simulated, on which tokens."""

    subject: AuditInputs
    profile: Profile
    found: Sequence[Candidate]
    tokens: int

    def plan(self, name: str, options: Mapping[int, int]) -> Plan:
        """options: by index of a candidate, which of its options it gets; others are left alone."""
        schemes = {
            member: scheme
            for index, option in options.items()
            if (scheme := self.found[index].options[option].scheme) is not None
            for member in self.found[index].group.members
        }
        recipe = ResolvedRecipe(name=name, schemes=schemes, digest=scheme_digest(schemes))
        return recipe_plan(recipe, self.subject.loaded.model, [c.group for c in self.found], self.profile)

    def kls(self, plans: Sequence[Plan]) -> list[float]:
        """Nats per token; infinite where it is not finite."""
        samples = evaluation.select(self.subject.corpus.samples, self.tokens)
        with self.subject.computed():
            rows = score_plans(self.subject.loaded.model, samples, plans)
        return [float("inf") if row.kl is None else row.kl for row in rows]


def greedy(found: Sequence[Candidate], kl: Sequence[Sequence[float]], share: float) -> Choice:
    """By simulated KLs of single groups: what saves most for a share of the MACs leaves the format first."""
    kept, freed = [], []
    for candidate, own in zip(found, kl, strict=True):
        order = sorted(range(len(own)), key=own.__getitem__)
        kept.append(next(i for i in order if candidate.options[i].keeps_format))
        freed.append(next(i for i in order if not candidate.options[i].keeps_format))
    saved = [
        (own[a] - own[b]) / max(candidate.share, 1e-12)
        for candidate, own, a, b in zip(found, kl, kept, freed, strict=True)
    ]
    choice, lost = list(kept), 0.0
    for index in sorted(range(len(found)), key=lambda i: -saved[i]):
        if saved[index] > 0 and lost + found[index].share <= 1 - share:
            choice[index] = freed[index]
            lost += found[index].share
    return choice


def brute_force(case: Case) -> list[list[float]]:
    """KL of every option of every group alone; 0 where it is left unquantized."""
    return [
        [
            0.0 if option.scheme is None else case.kls([case.plan("one", {index: number})])[0]
            for number, option in enumerate(candidate.options)
        ]
        for index, candidate in enumerate(case.found)
    ]


def run(model: str, recipe: Path, tokens: int, measured: Path | None) -> dict[str, object]:
    """Both choices at every share, simulated, and what each cost to find, in processor time."""
    profile = load_profile(measured) if measured else None
    subject = prepare(settings_of_profile(profile, model) if profile else Settings.of(model=model))
    profile = profile or measure_inputs(subject)
    samples = evaluation.select(subject.corpus.samples, tokens)
    start = process_time()
    opened = OpenedRecipe(
        path=recipe,
        resolution=resolve(read_recipe(recipe), subject.loaded.model),
        loaded=subject.loaded,
        profile=profile,
        corpus=subject.corpus,
        samples=samples,
    )
    with subject.computed():
        found = find_candidates(opened, Offers(smoothing=False, moving_averages=True, unquantized=True))
    choices = {share: cheapest([candidate.item for candidate in found], 1 - share) for share in SHARES}
    priced = process_time() - start
    case = Case(subject=subject, profile=profile, found=found, tokens=tokens)
    start = process_time()
    truth = brute_force(case)
    forced = process_time() - start
    plans = [
        case.plan(f"{kind} {share}", dict(enumerate(choice)))
        for share in SHARES
        for kind, choice in (("advice", choices[share]), ("greedy", greedy(found, truth, share)))
    ]
    kls = case.kls(plans)
    return {
        "model": subject.loaded.info.name,
        "tokens": sum(len(sample.ids) for sample in samples),
        "simulated_alone": sum(option.scheme is not None for candidate in found for option in candidate.options),
        "cost": priced / forced,
        "shares": {str(share): {"advice": kls[2 * i], "greedy": kls[2 * i + 1]} for i, share in enumerate(SHARES)},
    }


def misses(result: dict[str, object]) -> list[str]:
    """What does not hold."""
    found = []
    shares, cost = result["shares"], result["cost"]
    assert isinstance(shares, dict)
    assert isinstance(cost, float)
    for share, row in shares.items():
        if not row["advice"] <= WORSE * row["greedy"]:
            found.append(f"at {share} kept advice gives {row['advice']:.4f}, the greedy choice {row['greedy']:.4f}")
    if not cost <= COST:
        found.append(f"advice costs {cost:.3f} of brute force, above {COST}")
    return found


def main() -> int:
    """Command line; 1 on a miss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--recipe", type=Path, default=resource_dir("recipes") / "w8a8_static.yaml")
    parser.add_argument("--evaluation-tokens", type=int, default=1024)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = run(arguments.model, arguments.recipe, arguments.evaluation_tokens, arguments.profile)
    if arguments.out:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    found = misses(result)
    for line in found:
        print(f"missed: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
