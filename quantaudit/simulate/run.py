"""Profile + model + evaluation tokens → Simulation: all three levels, for the given schemes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from compressed_tensors.quantization import QuantizationScheme
from torch import nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import CorpusError, MeasurementError, UsageError
from quantaudit.model.load import LoadedModel
from quantaudit.model.sites import Group, discover
from quantaudit.profile import Profile
from quantaudit.progress import Advance, Stages, silent_stages
from quantaudit.quant.limits import obstacles
from quantaudit.quant.ranges import model_dtype, site_qparams
from quantaudit.quant.scales import QParams
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, Scheme, dump_args
from quantaudit.quant.weights import upright
from quantaudit.simulate import evaluation
from quantaudit.simulate.block import group_damage, steps
from quantaudit.simulate.calibrate import ANCHORS, Simulated, price_by_damage
from quantaudit.simulate.granularity import granularity_rows, taps, watch_inputs
from quantaudit.simulate.logits import score_plans
from quantaudit.simulate.plan import Plan
from quantaudit.simulate.predict import Floor, fit_curve, rounding_floor
from quantaudit.simulate.price import PriceList, price_groups
from quantaudit.simulate.recipes import ResolvedRecipe, recipe_plan
from quantaudit.simulate.records import Evaluation, GroupRow, RecipeRow, SchemeInfo, Simulation
from quantaudit.simulate.tensor import error_rows
from quantaudit.stats.unigram import unigram_perplexity

MIXED = "int8_static_worst_dynamic"
"""The recipe that keeps static scales except where most of the damage is done."""
MIXED_SHARE = 0.95

SCORES = ("auto", "gradient", "damage")
"""Whence prices come: from a backward pass, demanded or where it fits, or from damage and a few simulated groups."""


def simulate(
    loaded: LoadedModel,
    profile: Profile,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    *,
    evaluation_tokens: int,
    score: str = "auto",
    recipes: Sequence[ResolvedRecipe] = (),
    stages: Stages = silent_stages,
) -> Simulation:
    """Predict what each scheme does to tensors, to fused groups, and to the model.

    samples: the tokenized corpus of the profile. Static ranges come from the profile's calibration split, every error
    from the evaluation split. score: one of SCORES. recipes: scored on the whole model after the schemes. Raises
    CorpusError when no evaluation sample has two tokens, UsageError when a scheme does not fit the model, and
    MeasurementError when prices are demanded and the backward pass fails.
    """
    chosen = evaluation.select(samples, evaluation_tokens)
    if not chosen:
        raise CorpusError(
            "no evaluation sample has two tokens or more", hint="give longer samples or raise --evaluation-tokens"
        )
    architecture = discover(loaded.model)
    for scheme in schemes:
        check_fit(scheme, loaded.model, architecture.groups)
    qparams = {
        scheme.name: {
            group.name: site_qparams(profile, group.site, scheme.input_activations, scheme.observer)
            for group in architecture.groups
            if scheme.static and scheme.input_activations is not None and scheme.observer is not None
        }
        for scheme in schemes
    }
    tick = stages("replaying blocks", steps(architecture, schemes))
    groups = group_damage(loaded.model, architecture, chosen, schemes, qparams, tick)
    note: str | None = None
    source: Literal["gradient", "damage"] | None = None
    tick = stages("measuring the rounding floor", len(chosen), "samples")
    floor = rounding_floor(loaded.model, architecture.blocks, chosen, progress=tick)
    if score != "damage":
        tick = stages("pricing groups", len(chosen), "samples")
        try:
            groups = with_prices(
                groups, price_groups(loaded.model, architecture.groups, chosen, schemes, qparams, progress=tick)
            )
            source = "gradient"
        except RuntimeError as error:
            # Out of memory, or an operation without a derivative.
            note = f"no prices from gradients: the backward pass failed ({str(error).partition(chr(10))[0]})"
            if score == "gradient":
                raise MeasurementError(
                    note, where="--score gradient", hint="use --score damage, or fewer --evaluation-tokens"
                ) from error
    inside = [group for group in architecture.groups if group.layer is not None]
    if source is None:
        tick = stages("simulating single groups", ANCHORS * len(chosen))
        groups = price_by_damage(groups, _single(loaded.model, inside, chosen, schemes, qparams, tick), floor)
        source = "damage" if any(row.price is not None for row in groups) else None
    plans = [_uniform(scheme, inside, qparams[scheme.name]) for scheme in schemes]
    if INT8_STATIC in schemes and INT8_DYNAMIC in schemes:
        plans.append(_mixed(inside, groups, qparams[INT8_STATIC.name]))
    plans += [recipe_plan(recipe, loaded.model, architecture.groups, profile) for recipe in recipes]
    tick = stages("scoring the whole model", len(plans) * len(chosen))
    watched = watch_inputs(inside, profile)
    rows = score_plans(
        loaded.model, chosen, plans, blocks=architecture.blocks, taps=taps(inside, watched), progress=tick
    )
    rows = with_estimates(rows, plans, architecture.groups, schemes, groups, floor)
    return Simulation(
        evaluation=Evaluation(
            tokens=sum(len(sample.ids) for sample in chosen),
            samples=[sample.id for sample in chosen],
            max_tokens_per_sample=evaluation.sample_cap(evaluation_tokens),
            arithmetic=str(model_dtype(profile)).removeprefix("torch."),
            priced=source is not None,
            unigram_perplexity=unigram_perplexity(
                [sample.ids for sample in samples],
                [sample.ids for sample in chosen],
                loaded.info.vocab_size,
                unpredicted={int(i) for sample in chosen for i in sample.ids[sample.images]},
            ),
            note=note,
            price_source=source,
            rounding_floor=floor.at(0),
        ),
        schemes=[describe(scheme) for scheme in schemes],
        sites=error_rows(profile),
        groups=groups,
        recipes=rows,
        granularity=granularity_rows(inside, watched),
    )


def check_fit(scheme: Scheme, model: nn.Module, groups: Sequence[Group]) -> None:
    """Raises UsageError where a scheme's groups do not divide the columns of a Linear in the decoder blocks."""
    members = [member for group in groups if group.layer is not None for member in group.members]
    for member in members:
        shape = tuple(upright(model.get_submodule(member)).shape)
        toolkit = QuantizationScheme(
            targets=["Linear"], weights=scheme.weights, input_activations=scheme.input_activations
        )
        if reasons := obstacles(toolkit, shape):
            raise UsageError(
                f"{member}: {reasons[0]}",
                where=f"--scheme {scheme.name}",
                hint="write a recipe that leaves such modules out, and give it with --recipe",
            )


def find_score(name: str) -> str:
    """Check the name of a score. Raises UsageError."""
    if name not in SCORES:
        raise UsageError("unknown score", where=f"--score {name}", hint=f"one of {', '.join(SCORES)}")
    return name


def with_prices(rows: Sequence[GroupRow], prices: PriceList) -> list[GroupRow]:
    """The rows with their prices."""
    return [row.model_copy(update={"price": prices.get((row.group, row.scheme))}) for row in rows]


def with_estimates(
    recipes: Sequence[RecipeRow],
    plans: Sequence[Plan],
    groups: Sequence[Group],
    schemes: Sequence[Scheme],
    rows: Sequence[GroupRow],
    floor: Floor,
) -> list[RecipeRow]:
    """The recipes with the KL that their groups' prices tell; how sums bend is taken from the other recipes alone."""
    prices = {(row.group, row.scheme): row.price for row in rows}
    totals = [_sum_of_prices(plan, groups, schemes, prices) for plan in plans]
    made = []
    for i, (recipe, total) in enumerate(zip(recipes, totals, strict=True)):
        others = [
            (other, row.kl)
            for j, (row, other) in enumerate(zip(recipes, totals, strict=True))
            if j != i and other is not None
        ]
        estimate = None if total is None else fit_curve(others, floor.at(0)).kl(total)
        made.append(recipe.model_copy(update={"kl_estimate": estimate}))
    return made


def _sum_of_prices(
    plan: Plan, groups: Sequence[Group], schemes: Sequence[Scheme], prices: Mapping[tuple[str, str], float | None]
) -> float | None:
    """Nats per token; None where the plan does something to a group that has no price."""
    total = 0.0
    for group in groups:
        found = [plan.schemes.get(member) for member in group.members]
        if not any(found):
            continue
        price = next(
            (
                prices.get((group.name, scheme.name))
                for scheme in schemes
                if all(own is not None and _alike(own, scheme) for own in found)
            ),
            None,
        )
        if price is None:
            return None
        total += price
    return total


def _alike(a: Scheme, b: Scheme) -> bool:
    return (a.weights, a.input_activations, a.observer) == (b.weights, b.input_activations, b.observer)


def _single(
    model: Any,
    groups: Sequence[Group],
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    progress: Advance,
) -> Simulated:
    """Simulates groups one by one, each under its row's scheme."""
    named = {scheme.name: scheme for scheme in schemes}

    def simulated(rows: Sequence[GroupRow]) -> list[float | None]:
        plans = [
            Plan.of_groups(
                groups=groups,
                name=f"{row.group} {row.scheme}",
                title=row.group,
                schemes={row.group: named[row.scheme]},
                qparams=qparams[row.scheme],
            )
            for row in rows
        ]
        return [row.kl for row in score_plans(model, samples, plans, progress=progress)]

    return simulated


def worst_groups(rows: Sequence[GroupRow], scheme: str, share: float) -> list[str]:
    """The fewest groups that together hold `share` of a scheme's damage, worst first."""
    damages = sorted(
        ((row.damage, row.group) for row in rows if row.scheme == scheme and row.damage is not None), reverse=True
    )
    total, held, chosen = sum(damage for damage, _ in damages), 0.0, []
    for damage, group in damages:
        if held >= share * total:
            break
        chosen.append(group)
        held += damage
    return chosen


def _uniform(scheme: Scheme, groups: Sequence[Group], qparams: dict[str, QParams | None]) -> Plan:
    # lm_head is not among the groups: every toolkit recipe leaves it alone.
    return Plan.of_groups(
        name=scheme.name,
        title=f"{scheme.title}, lm_head left alone",
        groups=groups,
        schemes={group.name: scheme for group in groups},
        qparams=qparams,
    )


def _mixed(groups: Sequence[Group], rows: Sequence[GroupRow], qparams: dict[str, QParams | None]) -> Plan:
    """Static scales where they do little harm, dynamic ones for the groups that hold nearly all the damage."""
    worst = set(worst_groups(rows, INT8_STATIC.name, MIXED_SHARE))
    return Plan.of_groups(
        name=MIXED,
        title=f"{INT8_STATIC.title}, the {len(worst)} worst groups dynamic per-token",
        groups=groups,
        schemes={group.name: INT8_DYNAMIC if group.name in worst else INT8_STATIC for group in groups},
        qparams=qparams,
    )


def describe(scheme: Scheme) -> SchemeInfo:
    """A scheme as a card lists it."""
    return SchemeInfo(
        name=scheme.name,
        title=scheme.title,
        weights=dump_args(scheme.weights),
        input_activations=dump_args(scheme.input_activations),
        observer=scheme.observer,
    )
