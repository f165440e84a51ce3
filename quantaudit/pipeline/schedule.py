"""How long a job will take on this machine: what it does, counted, times what a few samples took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from quantaudit.card.text import sample_count
from quantaudit.common.choices import find_single
from quantaudit.common.progress import Job, Stage, Stages
from quantaudit.common.ranks.forked import one_thread
from quantaudit.common.ranks.team import alone, team
from quantaudit.model.blockwise.memory import size_option, size_text
from quantaudit.model.experts import extra_work
from quantaudit.model.sites import Architecture
from quantaudit.pipeline.passes import fork_count
from quantaudit.pipeline.plan.demand import demand_of
from quantaudit.pipeline.plan.speed import probe
from quantaudit.pipeline.prepare import AuditInputs, Say
from quantaudit.provenance import CorpusInfo
from quantaudit.quant.standard import ChosenSchemes
from quantaudit.settings import Settings
from quantaudit.simulate.cost import (
    FIVE_MINUTES,
    Speed,
    Work,
    calibrating,
    count_weights,
    expected_stages,
    forward_passes,
    minutes,
    samples_in,
    scheme_seconds,
    single_passes,
)
from quantaudit.simulate.memory import Demand
from quantaudit.simulate.sensitivity.draws import draws_for

T = TypeVar("T")

WORTH_NAMING = 2.5
"""Seconds from which on the time of one scheme is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is to be done, how fast this machine is at it, and what memory it takes on each rank."""

    work: Work
    speed: Speed
    memory: Demand

    @property
    def stages(self) -> list[Stage]:
        """Every stage with its seconds."""
        return expected_stages(self.work, self.speed)

    @property
    def seconds(self) -> float:
        """Of the whole job."""
        return sum(stage.seconds for stage in self.stages)


def schedule(
    inputs: AuditInputs,
    *,
    measured: bool = False,
    simulated: bool = True,
    rendered: bool = False,
    ratios: bool = False,
    shards: int = 1,
) -> Schedule:
    """Count the work and time a few samples. measured: whether a profile is there already. ratios: whether those of
    tokens are taken. shards: of how many equal parts one is measured.
    """
    calibration = inputs.corpus.info.calibration.tokens
    calibrations = tuple(
        (calibrating(recipe.name), recipe.calibration_passes * calibration)
        for recipe in inputs.recipes
        if recipe.smooth
    )
    work = count_work(
        inputs.settings,
        inputs.corpus.info,
        inputs.chosen,
        inputs.loaded.architecture,
        measured=measured,
        simulated=simulated,
        rendered=rendered,
    )
    work = replace(
        work,
        tokens=work.tokens // shards,
        calibrations=calibrations if simulated else (),
        ratios=work.tokens if ratios else 0,
    )
    speed = probe(inputs, tapped=not measured or bool(calibrations), scored=simulated)
    return Schedule(work=work, speed=speed, memory=demand_of(inputs, work))


def count_work(
    settings: Settings,
    info: CorpusInfo,
    chosen: ChosenSchemes,
    architecture: Architecture,
    *,
    measured: bool = False,
    simulated: bool = True,
    rendered: bool = False,
) -> Work:
    """What a report or a part of it does, from what is known before a model is loaded."""
    options, tokens = settings.simulate, 0 if measured else info.tokens
    if not simulated:
        return Work(tokens=tokens)
    by_damage = options.score == "damage"
    full = [scheme for scheme in chosen.schemes if by_damage or scheme.name not in chosen.price_alone]
    return Work(
        tokens=tokens,
        evaluated=min(options.evaluation_tokens, info.evaluation.tokens),
        schemes=len(chosen.schemes),
        priced_alone=0 if by_damage else len(chosen.price_alone),
        weights=count_weights(full),
        formats=count_weights(chosen.schemes),
        recipes=len(options.recipes),
        by_damage=by_damage,
        single=_single_groups(settings, architecture),
        rendered=len(architecture.sites) if rendered else 0,
    )


def describe(inputs: AuditInputs, plan: Schedule) -> str:
    """What a run will take, in minutes, tokens and forward passes, before it starts."""
    info, work = inputs.corpus.info, plan.work
    parts = [f"one pass over {sample_count(info)} ({info.tokens:,} tokens)"] if work.tokens else []
    more = extra_work(inputs.loaded.model) if inputs.settings.measure.experts == "all" else None
    if parts and more is not None:
        parts[0] += f", its experts on all tokens ({more:,.3g} times their work)"
    if work.ratios:
        parts.append("a second one for ratios of single tokens")
    if work.calibrations:
        passes = sum(tokens for _, tokens in work.calibrations) // max(info.calibration.tokens, 1)
        parts.append(f"{passes} passes over {info.calibration.tokens:,} calibration tokens to smooth")
    if work.evaluated:
        simulating = f"about {forward_passes(work):.0f} passes over {work.evaluated:,} evaluation tokens"
        simulating += f", {single_passes(work)} of them for single groups"
        if not work.by_damage:
            simulating += f", {draws_for(work.evaluated)} of them backward too"
        if work.priced_alone:
            each, simulating = scheme_seconds(work, plan.speed), f"{simulating}; {work.schemes} schemes"
            if each >= WORTH_NAMING:
                simulating += f", some {minutes(each)} each, --schemes chooses others"
        parts.append(simulating)
    return f"about {minutes(plan.seconds)} from here: {' and '.join(parts)}"


def advise_samples(inputs: AuditInputs, plan: Schedule) -> str | None:
    """Which --samples would take five minutes, where the corpus takes longer; None where it does not."""
    if plan.seconds <= FIVE_MINUTES or not plan.work.tokens:
        return None
    info = inputs.corpus.info
    count = samples_in(
        FIVE_MINUTES,
        plan.work,
        plan.speed,
        samples=info.samples,
        evaluation=info.evaluation.tokens,
        budget=inputs.settings.simulate.evaluation_tokens,
    )
    if count is None:
        return "no choice of --samples would take five minutes here; --evaluation-tokens makes it shorter"
    return f"--samples {count} would take about five minutes here"


def _single_groups(settings: Settings, architecture: Architecture) -> int:
    """How many fused groups will be simulated alone, if all have a damage."""
    count = find_single(settings.simulate.single_groups)
    if count == 0:
        return 0
    inside = sum(group.layer is not None for group in architecture.groups)
    return inside if count is None else min(count, inside)


def announce(inputs: AuditInputs, stages: Stages, say: Say, plan: Callable[[], Schedule]) -> None:
    """Time a few samples, say how long the run takes, announce its stages; nothing where nobody listens."""
    if not isinstance(stages, Job):
        return
    ranks, forks = team().size, fork_count(inputs)
    scheduled = _tried(plan, stages, forks)
    scheduled = replace(scheduled, speed=scheduled.speed.shared(max(ranks, forks)))
    each = ""
    if ranks > 1:
        each = " on each rank"
    elif forks > 1:
        each = " in each process, weights and program in common"
    say(describe(inputs, scheduled) + _sharing(ranks, forks))
    say(f"{scheduled.memory}{each}")
    budget = inputs.loaded.weights.budget if inputs.loaded.weights is not None else None
    if budget is not None and scheduled.memory.least > budget:
        least = size_option(scheduled.memory.least)
        say(f"{size_text(budget)} may not hold it: --memory-budget {least} would, or shorter samples (--max-length)")
    if shorter := advise_samples(inputs, scheduled):
        say(shorter)
    stages.expect(scheduled.stages)


def announce_stages(
    inputs: AuditInputs,
    stages: Stages,
    say: Say,
    what: str,
    expected: Callable[[Speed], Sequence[Stage]],
    *,
    tapped: bool = False,
    forks: int = 1,
) -> None:
    """The same for other jobs. what: that it does, in words; expected: its stages, from the speed that was measured;
    tapped: whether that of a pass with every site tapped is too; forks: processes that share the samples.
    """
    if not isinstance(stages, Job):
        return
    ranks = team().size
    speed = _tried(partial(probe, inputs, tapped=tapped), stages, forks)
    scheduled = expected(speed.shared(max(ranks, forks)))
    spent = minutes(sum(stage.seconds for stage in scheduled))
    say(f"about {spent} from here: {what}{_sharing(ranks, forks)}")
    stages.expect(scheduled)


def loading_seconds(stages: Stages) -> float:
    """What loading models took, of stages that have ended."""
    took: dict[str, float] = getattr(stages, "took", {})
    return sum(seconds for title, seconds in took.items() if title.startswith("loading"))


def _tried(measure: Callable[[], T], stages: Stages, forks: int) -> T:
    """What a few samples tell: each rank times them for itself, all at once, as they will run."""
    stages("timing a few samples", 0)
    with alone(), one_thread() if forks > 1 else nullcontext():
        return measure()


def _sharing(ranks: int, forks: int) -> str:
    """What is added to the time that is said."""
    if ranks > 1:
        return f", shared by {ranks} ranks"
    return f", shared by {forks} processes" if forks > 1 else ""
