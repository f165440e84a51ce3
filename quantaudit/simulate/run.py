"""Profile + model + evaluation tokens → Simulation: all three levels, for the given schemes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from quantaudit.common.outputs.resume import units_of
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.common.ranks.team import deal, team
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.measure.profile import Profile
from quantaudit.model.blockwise.alone import check_side_by_side
from quantaudit.model.forward.arithmetic import arithmetic_now
from quantaudit.model.forward.batches import batches
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Group
from quantaudit.quant.ranges import model_dtype
from quantaudit.quant.schemes import INT8_STATIC, Scheme
from quantaudit.recipe.resolved import ResolvedRecipe
from quantaudit.simulate import evaluation
from quantaudit.simulate.cost import REPLAYING, ROUNDING, SCORING
from quantaudit.simulate.experiment import Experiment, GroupOptions, InputRanges
from quantaudit.simulate.granularity import granularity_rows, taps, watch_inputs
from quantaudit.simulate.group_effect import FinishedEffect, GroupEffect
from quantaudit.simulate.logits.baselines import baseline_plans
from quantaudit.simulate.logits.one_group import sample_groups, simulate_alone
from quantaudit.simulate.logits.rounding_floor import RoundingFloor, rounding_floor
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.quantized.recipe_plan import recipe_plan
from quantaudit.simulate.records import Evaluation, PriceSource, Simulation
from quantaudit.simulate.replay.replay_groups import replay_groups, steps
from quantaudit.simulate.scheme_info import check_fit, scheme_info
from quantaudit.simulate.sensitivity.prices import price_from_damage, record_pass
from quantaudit.simulate.sensitivity.recipe_estimate import with_estimates
from quantaudit.simulate.sensitivity.uncertain import price_by_kl, uncertain
from quantaudit.simulate.tensors import error_rows
from quantaudit.stats.unigram import unigram_perplexity

DEFAULT = GroupOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    """Predictions of fused groups. source: where prices come from; None without any. draws: of labels, for each sample.
    note: why not from gradients.
    """

    effects: list[GroupEffect]
    floor: RoundingFloor
    source: PriceSource | None
    draws: int
    note: str | None


def simulate(
    loaded: LoadedModel,
    profile: Profile,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    *,
    evaluation_tokens: int,
    groups: GroupOptions = DEFAULT,
    recipes: Sequence[ResolvedRecipe] = (),
    stages: Stages = silent_stages,
) -> Simulation:
    """Predict what each scheme does to tensors, to fused groups, and to the model.

    samples: the tokenized corpus of the profile. Static ranges come from the profile's calibration split, every error
    from the evaluation split. groups: how fused groups are priced, and how many are simulated alone, under static INT8
    where it is among the schemes. recipes: scored on the whole model after the schemes.
    Raises CorpusError when no evaluation sample has two tokens, UsageError when a scheme does not fit the model, and
    MeasurementError when prices from gradients are demanded and the backward pass fails.
    """
    selection = evaluation.choose(samples, evaluation_tokens, loaded.tokenizer)
    chosen = selection.samples
    if loaded.weights is not None:
        check_side_by_side(loaded.model, loaded.weights, batches(chosen, device=loaded.device))
    experiment = _experiment(loaded, profile, chosen, schemes)
    quantizable = experiment.only(_called_groups(experiment, profile))
    predicted = _predict_groups(experiment, quantizable, groups, stages)
    plans = baseline_plans(quantizable, predicted.effects)
    plans += [
        recipe_plan(recipe, loaded.model, experiment.groups, profile, samples, stages=stages) for recipe in recipes
    ]
    watched = watch_inputs(quantizable.groups, profile)
    rows = score_plans(
        loaded.model,
        chosen,
        plans,
        blocks=experiment.architecture.blocks,
        taps=taps(quantizable.groups, watched),
        weights=loaded.weights,
        progress=stages(SCORING, len(plans) * len(deal(chosen, lambda sample: len(sample.ids)))),
    )
    return Simulation(
        fingerprint=profile.provenance.model.fingerprint,
        corpus_sha256=profile.provenance.corpus.sha256,
        profile_sha256=profile.digest,
        evaluation=Evaluation(
            tokens=sum(len(sample.ids) for sample in chosen),
            samples=[sample.id for sample in chosen],
            max_tokens_per_sample=evaluation.sample_cap(evaluation_tokens),
            left_out=selection.left_out,
            overlapping=selection.overlapping,
            arithmetic=str(model_dtype(profile)).removeprefix("torch."),
            products=arithmetic_now(loaded.model),
            priced=predicted.source is not None,
            unigram_perplexity=_unigram_perplexity(loaded, samples, chosen),
            note=predicted.note,
            price_source=predicted.source,
            draws=predicted.draws if predicted.source == "gradient" else None,
            rounding_floor=predicted.floor.at(0),
        ),
        schemes=[scheme_info(scheme) for scheme in schemes],
        sites=error_rows(profile),
        groups=[effect.to_row() for effect in predicted.effects],
        recipes=with_estimates(rows, plans, experiment, predicted.effects, predicted.floor),
        granularity=granularity_rows(quantizable.groups, watched),
    )


def _experiment(
    loaded: LoadedModel, profile: Profile, chosen: Sequence[TokenizedSample], schemes: Sequence[Scheme]
) -> Experiment:
    architecture = loaded.architecture
    for scheme in schemes:
        check_fit(scheme, loaded.model, architecture.groups)
    return Experiment(
        model=loaded.model,
        architecture=architecture,
        samples=chosen,
        weights=loaded.weights,
        schemes=schemes,
        ranges=InputRanges.measured(profile, schemes, architecture.groups),
    )


def _called_groups(experiment: Experiment, profile: Profile) -> list[Group]:
    """Groups inside the decoder blocks that the model calls.

    A Linear that nothing calls has no input to quantize; schemes of the whole model pass it by, as engines do.
    """
    bypassed = {row.module for row in profile.provenance.unmeasured if not row.weights}
    inside = [group for group in experiment.groups if group.layer is not None]
    return [group for group in inside if not bypassed.issuperset(group.members)]


def _predict_groups(experiment: Experiment, quantizable: Experiment, options: GroupOptions, stages: Stages) -> _Groups:
    effects, draws, note = _replayed(experiment, options, stages)
    own = deal(experiment.samples, lambda sample: len(sample.ids))
    tick = stages(ROUNDING, len(own), "samples")
    floor = rounding_floor(
        experiment.model,
        experiment.architecture.blocks,
        experiment.samples,
        weights=experiment.weights,
        progress=tick,
    )
    left_to_chance = uncertain(quantizable, effects, floor)
    simulate_alone(
        quantizable, [*sample_groups(effects, INT8_STATIC.name, options.single), *left_to_chance], stages=stages
    )
    price_by_kl(left_to_chance, floor)
    if not draws:
        price_from_damage(quantizable, effects, floor, stages=stages)
    source: PriceSource | None = "gradient" if draws else "damage"
    if all(effect.price is None for effect in effects):
        source, note = None, note or "no prices: what came back, or the damage, was not finite"
    return _Groups(effects=effects, floor=floor, source=source, draws=draws, note=note)


def _replayed(
    experiment: Experiment, options: GroupOptions, stages: Stages
) -> tuple[list[GroupEffect], int, str | None]:
    """Effects by replays of blocks, how often labels were drawn for their prices, and why not.

    A run that is resumed takes over the groups that were replayed. What replays need is in memory alone: the pass that
    records it runs again, unless all of them were.
    """
    units = units_of("replays")
    finished = team().from_first(units.get_json("all"))
    if finished is not None:
        return [restored(experiment, row) for row in finished["effects"]], finished["draws"], finished["note"]
    recorded, note = record_pass(experiment, source=options.score, price_alone=options.price_alone, stages=stages)
    alone = options.price_alone if recorded.draws else frozenset()
    tick = stages(REPLAYING, steps(experiment, price_alone=alone))
    with closing(recorded):
        effects = replay_groups(experiment, recorded, tick, price_alone=alone, units=units)
    rows = [effect.finished for effect in effects]
    units.put_json("all", {"effects": rows, "draws": recorded.draws, "note": note})
    return effects, recorded.draws, note


def restored(experiment: Experiment, row: FinishedEffect) -> GroupEffect:
    """The effect of which `row` is what an interrupted run kept."""
    name, scheme_name, damage, damage_weights_only, price, price_stderr = row
    group = next(group for group in experiment.groups if group.name == name)
    scheme = next(scheme for scheme in experiment.schemes if scheme.name == scheme_name)
    return GroupEffect(
        group=group,
        scheme=scheme,
        damage=damage,
        damage_weights_only=damage_weights_only,
        price=price,
        price_stderr=price_stderr,
    )


def _unigram_perplexity(
    loaded: LoadedModel, samples: Sequence[TokenizedSample], chosen: Sequence[TokenizedSample]
) -> float:
    return unigram_perplexity(
        [sample.ids for sample in samples],
        [sample.ids for sample in chosen],
        loaded.info.vocab_size,
        unpredicted={int(i) for sample in chosen for i in sample.ids[sample.images]},
    )
