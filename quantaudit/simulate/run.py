"""Profile + model + evaluation tokens → Simulation: all three levels, for the given schemes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import CorpusError
from quantaudit.model.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.profile import Profile
from quantaudit.quant.schemes import Scheme, dump_args
from quantaudit.simulate import evaluation
from quantaudit.simulate.block import group_damage, steps
from quantaudit.simulate.logits import Plan, score_plans
from quantaudit.simulate.records import Evaluation, SchemeInfo, Simulation
from quantaudit.simulate.tensor import model_dtype, scale_table, site_qparams


class Stages(Protocol):
    """Shows how far each stage is: opened with its number of steps, then called once a step."""

    def __call__(self, title: str, total: int) -> Callable[[], None]: ...


def silent_stages(title: str, total: int) -> Callable[[], None]:
    """Shows nothing."""
    return lambda: None


def simulate(
    loaded: LoadedModel,
    profile: Profile,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    *,
    evaluation_tokens: int,
    stages: Stages = silent_stages,
) -> Simulation:
    """Predict what each scheme does to tensors, to fused groups, and to the model.

    samples: the tokenized corpus of the profile. Static ranges come from the profile's calibration split, every error
    from the evaluation split. Raises CorpusError when no evaluation sample has two tokens.
    """
    chosen = evaluation.select(samples, evaluation_tokens)
    if not chosen:
        raise CorpusError(
            "no evaluation sample has two tokens or more", hint="give longer samples or raise --evaluation-tokens"
        )
    architecture = discover(loaded.model)
    qparams = {
        scheme.name: {
            group.name: site_qparams(profile, group.site, scheme.input_activations, scheme.observer)
            for group in architecture.groups
            if scheme.input_activations is not None and scheme.observer is not None
        }
        for scheme in schemes
    }
    static = next((ranges for ranges in qparams.values() if ranges), {})
    tick = stages("replaying blocks", steps(architecture, schemes))
    groups = group_damage(loaded.model, architecture, chosen, schemes, static, tick)
    # Every toolkit recipe leaves the output projection alone; so do these.
    inside = [group for group in architecture.groups if group.layer is not None]
    plans = [
        Plan(
            name=scheme.name,
            title=f"{scheme.title}, lm_head left alone",
            schemes={group.name: scheme for group in inside},
            qparams=qparams[scheme.name],
        )
        for scheme in schemes
    ]
    tick = stages("scoring the whole model", len(plans) * len(chosen))
    recipes = score_plans(loaded.model, inside, chosen, plans, tick)
    return Simulation(
        evaluation=Evaluation(
            tokens=sum(len(sample.ids) for sample in chosen),
            samples=[sample.id for sample in chosen],
            max_tokens_per_sample=evaluation.sample_cap(evaluation_tokens),
            arithmetic=str(model_dtype(profile)).removeprefix("torch."),
        ),
        schemes=[describe(scheme) for scheme in schemes],
        sites=scale_table(profile)[1],
        groups=groups,
        recipes=recipes,
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
