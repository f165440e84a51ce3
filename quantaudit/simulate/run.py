"""Profile + model + evaluation tokens → Simulation: all three levels, for the given schemes."""

from __future__ import annotations

from collections.abc import Sequence

from compressed_tensors.quantization import QuantizationScheme
from torch import nn

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import UsageError
from quantaudit.measure.profile import Profile
from quantaudit.model.forward.arithmetic import arithmetic_now
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Group
from quantaudit.quant.ranges import model_dtype
from quantaudit.quant.schemes import INT8_STATIC, Scheme, dump_args
from quantaudit.quant.support import obstacles
from quantaudit.quant.weights import weight_out_in
from quantaudit.recipe.resolved import ResolvedRecipe
from quantaudit.simulate import evaluation
from quantaudit.simulate.experiment import Experiment, GroupOptions, InputRanges
from quantaudit.simulate.granularity import granularity_rows, taps, watch_inputs
from quantaudit.simulate.logits.baselines import baseline_plans
from quantaudit.simulate.logits.one_group import sample_groups, simulate_alone
from quantaudit.simulate.logits.rounding_floor import rounding_floor
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.quantized.recipe_plan import recipe_plan
from quantaudit.simulate.records import Evaluation, PriceSource, SchemeInfo, Simulation
from quantaudit.simulate.replay.group_effects import replay_groups, steps
from quantaudit.simulate.sensitivity.prices import price_from_damage, record_pass
from quantaudit.simulate.sensitivity.recipe_estimate import with_estimates
from quantaudit.simulate.tensors import error_rows
from quantaudit.stats.unigram import unigram_perplexity

DEFAULT = GroupOptions()


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
    chosen = evaluation.select_some(samples, evaluation_tokens)
    architecture = loaded.architecture
    for scheme in schemes:
        check_fit(scheme, loaded.model, architecture.groups)
    experiment = Experiment(
        model=loaded.model,
        architecture=architecture,
        samples=chosen,
        schemes=schemes,
        ranges=InputRanges.measured(profile, schemes, architecture.groups),
    )
    # A Linear that nothing calls has no input to quantize; schemes of the whole model pass it by, as engines do.
    bypassed = {row.module for row in profile.provenance.unmeasured if not row.weights}
    inside = [
        group for group in architecture.groups if group.layer is not None and not bypassed.issuperset(group.members)
    ]
    recorded, note = record_pass(experiment, source=groups.score, stages=stages)
    effects = replay_groups(experiment, recorded, stages("replaying blocks", steps(experiment)))
    tick = stages("measuring the rounding floor", len(chosen), "samples")
    floor = rounding_floor(loaded.model, architecture.blocks, chosen, progress=tick)
    quantizable = experiment.only(inside)
    simulate_alone(quantizable, sample_groups(effects, INT8_STATIC.name, groups.single), stages=stages)
    if not recorded.draws:
        price_from_damage(quantizable, effects, floor, stages=stages)
    source: PriceSource | None = "gradient" if recorded.draws else "damage"
    if all(effect.price is None for effect in effects):
        source, note = None, note or "no prices: what came back, or the damage, was not finite"
    plans = baseline_plans(quantizable, effects)
    plans += [
        recipe_plan(recipe, loaded.model, architecture.groups, profile, samples, stages=stages) for recipe in recipes
    ]
    tick = stages("scoring the whole model", len(plans) * len(chosen))
    watched = watch_inputs(inside, profile)
    rows = score_plans(
        loaded.model, chosen, plans, blocks=architecture.blocks, taps=taps(inside, watched), progress=tick
    )
    rows = with_estimates(rows, plans, experiment, effects, floor)
    return Simulation(
        fingerprint=profile.provenance.model.fingerprint,
        corpus_sha256=profile.provenance.corpus.sha256,
        evaluation=Evaluation(
            tokens=sum(len(sample.ids) for sample in chosen),
            samples=[sample.id for sample in chosen],
            max_tokens_per_sample=evaluation.sample_cap(evaluation_tokens),
            arithmetic=str(model_dtype(profile)).removeprefix("torch."),
            products=arithmetic_now(loaded.model),
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
        groups=[effect.to_row() for effect in effects],
        recipes=rows,
        granularity=granularity_rows(inside, watched),
    )


def check_fit(scheme: Scheme, model: nn.Module, groups: Sequence[Group]) -> None:
    """Raises UsageError where a scheme's groups do not divide the columns of a Linear in the decoder blocks."""
    members = [member for group in groups if group.layer is not None for member in group.members]
    for member in members:
        shape = tuple(weight_out_in(model.get_submodule(member)).shape)
        resolved = QuantizationScheme(
            targets=["Linear"], weights=scheme.weights, input_activations=scheme.input_activations
        )
        if reasons := obstacles(resolved, shape):
            raise UsageError(
                f"{member}: {reasons[0]}",
                where=f"--scheme {scheme.name}",
                hint="write a recipe that leaves such modules out, and give it with --recipe",
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
