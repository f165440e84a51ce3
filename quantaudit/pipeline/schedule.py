"""How long a job will take on this machine: what it does, counted, times what a few samples took."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import torch

from quantaudit.card.text import sample_count
from quantaudit.common.choices import find_single
from quantaudit.common.progress import Job, Stage, Stages
from quantaudit.common.ranks.forked import one_thread
from quantaudit.common.ranks.team import alone, team
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.budget import UNLIMITED
from quantaudit.model.blockwise.input_store import InputStore
from quantaudit.model.blockwise.lockstep import run_in_lockstep
from quantaudit.model.blockwise.memory import available_bytes, size_text
from quantaudit.model.experts import extra_work
from quantaudit.model.forward.batches import batches, forward, last_logit_only
from quantaudit.model.sites import Architecture
from quantaudit.model.structure import hidden_size
from quantaudit.pipeline.passes import fork_count, measure_samples
from quantaudit.pipeline.plan.demand import Demands
from quantaudit.pipeline.plan.probe import TAPPED, rounding_seconds
from quantaudit.pipeline.prepare import AuditInputs, Say, shapes_in_blocks
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
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.memory import Demand
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.sensitivity.draws import draws_for

T = TypeVar("T")

PROBED = 3
"""Samples that are timed."""
WORTH_NAMING = 2.5
"""Seconds from which on the time of one scheme is said."""
_BLOCKS = 2
"""Decoder blocks that are timed of a model that runs block by block."""
_NO_CHANGE = Plan(name="", title="", schemes={}, qparams={}, groups=0)
PATIENCE = 2.5
"""Seconds that one kind of pass is timed for, about."""


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
    return Schedule(work=work, speed=speed, memory=_demand(inputs, work))


def _demand(inputs: AuditInputs, work: Work) -> Demand:
    """The memory of the run, as `plan` says it."""
    loaded, weights = inputs.loaded, inputs.loaded.weights
    demands = Demands(
        loaded.model,
        loaded.architecture,
        inputs.corpus.samples,
        inputs.settings,
        work,
        converted=weights is not None and weights.converted,
        wide=inputs.arithmetic == "float32",
        ranks=team().size,
    )
    if weights is None:
        return demands.whole
    return demands.by_block(weights.budget or sys.maxsize)


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


def probe(inputs: AuditInputs, *, tapped: bool = True, scored: bool = True) -> Speed:
    """Time passes over a few samples of typical length, after one that warms up. What is not asked for is NaN.

    Passes of the simulation are timed on what it will run on, which is cut shorter than what is measured.
    """
    loaded, nothing = inputs.loaded, float("nan")
    info = inputs.corpus.info
    count = max(PROBED, inputs.batch.rows(info.tokens // info.samples)) + 1
    samples = typical(inputs.corpus.samples, count)
    evaluated = typical(tuple(select(inputs.corpus.samples, inputs.settings.simulate.evaluation_tokens)), count)
    brief = evaluated[-1] if evaluated else samples[-1]  # to warm up

    def bare(chosen: list[TokenizedSample]) -> None:
        with last_logit_only(loaded.model):
            for batch in batches(chosen, device=loaded.device):
                forward(loaded.model, batch)

    def logits(chosen: list[TokenizedSample]) -> None:
        """Two passes with logits: of the model, and of the model under a plan that changes nothing."""
        score_plans(loaded.model, chosen, [_NO_CHANGE])

    def tap(chosen: list[TokenizedSample]) -> None:
        # The second pass of `auto` has a cost of its own, that a few samples cannot show.
        once = inputs.changed(experts="routed") if inputs.settings.measure.experts == "auto" else inputs
        measure_samples(once, replace(inputs.corpus, samples=tuple(chosen)))

    rounding = 0.0
    if scored:
        dtype, shapes = next(loaded.model.parameters()).dtype, shapes_in_blocks(loaded.model, loaded.architecture)
        rounding = rounding_seconds(shapes, inputs.chosen.schemes, dtype, loaded.device)
    with inputs.computed():
        if loaded.weights is not None:
            return replace(_by_block(inputs, loaded.weights, samples), rounding=rounding)
        measured = _per_token(tap, [*samples[:-1], brief], loaded.device) if tapped else nothing
        if not scored:
            return Speed(measured=measured, forward=nothing, scored=nothing, rounding=rounding)
        # A processor is warm after the first kind of pass; an accelerator loads kernels for each kind.
        one = evaluated[:1] if loaded.device.type == "cpu" else evaluated
        return Speed(
            measured=measured,
            forward=_per_token(bare, one if tapped else evaluated, loaded.device),
            scored=_per_token(logits, one, loaded.device) / 2,
            rounding=rounding,
        )


def _by_block(inputs: AuditInputs, weights: BlockWeights, samples: list[TokenizedSample]) -> Speed:
    """The speed of a model that runs block by block, from what two blocks take.

    They run on one sample to warm up, and then on it and on more: what more tokens take is computing, and what is left
    is reading, from the disk or from what of it is in memory, as it will be.
    """
    loaded = inputs.loaded

    def two_blocks(chosen: Sequence[TokenizedSample]) -> float:
        with _timed(loaded.device) as took:
            with last_logit_only(loaded.model), InputStore(loaded.model, UNLIMITED) as store:
                waiting = batches(chosen, inputs.batch, device=loaded.device)
                run_in_lockstep(
                    loaded.model, weights.blocks, waiting, partial(forward, loaded.model), store=store, only=_BLOCKS
                )
            weights.drop()
        return took[0]

    few = samples[:1]
    tokens, all_tokens = (sum(len(sample.ids) for sample in chosen) for chosen in (few, samples))
    cold, once, more = two_blocks(few), two_blocks(few), two_blocks(samples)
    computing, reading = split_time(once, tokens, more, all_tokens)
    if sum(weights.bytes) > available_bytes():  # the system's cache of files does not keep them
        reading = max(reading, cold - computing * tokens)
    blocks = len(weights.blocks) / min(_BLOCKS, len(weights.blocks))
    head: Any = loaded.model.get_output_embeddings()  # type: ignore[operator]
    with _timed(loaded.device) as logits, torch.no_grad():
        head(torch.zeros(1, tokens, hidden_size(loaded.model), dtype=head.weight.dtype, device=loaded.device))
    return Speed(
        measured=TAPPED * blocks * computing,
        forward=blocks * computing,
        scored=blocks * computing + logits[0] / tokens,
        reading=blocks * reading,
    )


def split_time(once: float, few: int, more: float, many: int) -> tuple[float, float]:
    """Seconds a token, and seconds that do not depend on tokens, of two runs over `few` and over `many` of them.

    Where the longer one took hardly longer, no more than all of it is either.
    """
    if many <= few:
        return once / few, 0.0
    each = min(max((more - once) / (many - few), 0.0), more / many)
    return each, max(0.0, more - each * many)


def typical(samples: tuple[TokenizedSample, ...], count: int) -> list[TokenizedSample]:
    """Samples around the length at which half of all tokens are in longer ones; at least one, the shortest last."""
    order = sorted(samples, key=lambda sample: (-len(sample.ids), sample.index))
    half, passed, middle = sum(len(sample.ids) for sample in order) / 2, 0, 0
    for middle, sample in enumerate(order):  # noqa: B007 (read below)
        passed += len(sample.ids)
        if passed >= half:
            break
    start = max(0, min(middle - count // 2, len(order) - count))
    return order[start : start + count]


def _per_token(
    work: Callable[[list[TokenizedSample]], None], samples: list[TokenizedSample], device: torch.device
) -> float:
    """Seconds a token: the last sample warms up, and as many others are timed as PATIENCE allows, one at least. A
    single sample is timed at once, which is for a model that has run already.

    The warm-up is never what is timed: on a new machine it compiles for longer than everything else takes.
    """
    *others, first = samples
    if not others:
        with _timed(device) as took:
            work([first])
        return took[0] / len(first.ids)
    with _timed(device) as warm:
        work([first])
    tokens, chosen = PATIENCE / max(warm[0], 1e-6) * len(first.ids), others[:1]
    for sample in others[1:]:
        if sum(len(other.ids) for other in (*chosen, sample)) <= tokens:
            chosen.append(sample)
    with _timed(device) as took:
        work(chosen)
    return took[0] / sum(len(sample.ids) for sample in chosen)


@contextmanager
def _timed(device: torch.device) -> Iterator[list[float]]:
    """Gives a list that holds the seconds of the context, once it is left and the device is drained."""
    seconds: list[float] = []
    start = perf_counter()
    yield seconds
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    seconds.append(perf_counter() - start)


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
        if work.single:
            simulating += f", {single_passes(work.single)} of them for single groups"
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
        least = size_text(scheduled.memory.least)
        say(f"{size_text(budget)} may not hold it: {least} would, or shorter samples (--max-length)")
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
