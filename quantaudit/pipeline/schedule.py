"""How long a job will take on this machine: what it does, counted, times what a few samples took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from quantaudit.card.text import sample_count
from quantaudit.common.choices import Experts, find_single
from quantaudit.common.progress import Advance, Stage, no_advance
from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.measure.run import measure
from quantaudit.model.experts import extra_work
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.forward.batches import batches, forward, last_logit_only
from quantaudit.model.sites import discover
from quantaudit.simulate.cost import (
    FIVE_MINUTES,
    Speed,
    Work,
    count_weights,
    expected_stages,
    forward_passes,
    minutes,
    samples_in,
    single_passes,
)
from quantaudit.simulate.logits.score_plans import score_plans

if TYPE_CHECKING:
    from quantaudit.measure.profile import Profile
    from quantaudit.measure.shard import Shard
    from quantaudit.pipeline.run import Subject

EAGER_TOKENS = 4096
"""Longest sample that is measured with eager attention under `auto`; above, as the model was loaded."""
PROBED = 3
"""Samples that are timed."""
PATIENCE = 4.0
"""Seconds that one kind of pass is timed for, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is to be done, and how fast this machine is at it."""

    work: Work
    speed: Speed

    @property
    def stages(self) -> list[Stage]:
        """Every stage with its seconds."""
        return expected_stages(self.work, self.speed)

    @property
    def seconds(self) -> float:
        """Of the whole job."""
        return sum(stage.seconds for stage in self.stages)


def measure_samples(
    subject: Subject,
    corpus: TokenizedCorpus,
    advance: Advance = no_advance,
    *,
    shard: Shard | None = None,
    experts: Experts | None = None,
) -> Profile:
    """One pass over samples, or over a shard of them, with every site tapped.

    Attention runs eagerly, as llm-compressor calibrates it, unless another is asked for or, under `auto`, a sample of
    the subject's corpus is longer than EAGER_TOKENS.
    """
    longest = max(len(sample.ids) for sample in subject.corpus.samples)
    # Eager attention keeps a matrix of tokens by tokens for every head.
    chosen = subject.settings.attention
    eager = chosen == "eager" or (chosen == "auto" and longest <= EAGER_TOKENS)
    with subject.computed(), eager_attention(subject.loaded.model) if eager else nullcontext():
        return measure(
            subject.loaded,
            corpus,
            batch_size=subject.settings.batch_size,
            seed=subject.settings.seed,
            experts=experts or subject.settings.experts,
            shard=shard,
            progress=advance,
        )


def schedule(
    subject: Subject, *, measured: bool = False, simulated: bool = True, rendered: bool = False, shards: int = 1
) -> Schedule:
    """Count the work and time a few samples. measured: whether a profile is there already.
    shards: of how many equal parts one is measured.
    """
    info, settings = subject.corpus.info, subject.settings
    work = Work(tokens=0 if measured else info.tokens // shards)
    if simulated:
        work = replace(
            work,
            evaluated=min(settings.evaluation_tokens, info.evaluation.tokens),
            schemes=len(subject.schemes),
            weights=count_weights(subject.schemes),
            recipes=len(subject.recipes),
            by_damage=settings.score == "damage",
            single=_single_groups(subject),
            calibrations=tuple(
                (f"calibrating {recipe.name}", (len(recipe.smooth) + 1) * info.calibration.tokens)
                for recipe in subject.recipes
                if recipe.smooth
            ),
            rendered=len(discover(subject.loaded.model).sites) if rendered else 0,
        )
    return Schedule(work=work, speed=probe(subject, tapped=not measured or bool(work.calibrations), scored=simulated))


def probe(subject: Subject, *, tapped: bool = True, scored: bool = True) -> Speed:
    """Time passes over a few samples of typical length, after one that warms up. What is not wanted is NaN."""
    loaded = subject.loaded
    samples = typical(subject.corpus.samples, max(PROBED, subject.settings.batch_size) + 1)
    nothing = float("nan")

    def bare(chosen: list[TokenizedSample]) -> None:
        with last_logit_only(loaded.model):
            for batch in batches(chosen, 1, pad=0, device=loaded.device):
                forward(loaded.model, batch)

    def logits(chosen: list[TokenizedSample]) -> None:
        score_plans(loaded.model, chosen, [])

    def tap(chosen: list[TokenizedSample]) -> None:
        once = "routed" if subject.settings.experts == "auto" else subject.settings.experts
        measure_samples(subject, replace(subject.corpus, samples=tuple(chosen)), experts=once)

    with subject.computed():
        return Speed(
            measured=_per_token(tap, samples, loaded.device) if tapped else nothing,
            forward=_per_token(bare, samples, loaded.device) if scored else nothing,
            scored=_per_token(logits, samples, loaded.device) if scored else nothing,
        )


def typical(samples: tuple[TokenizedSample, ...], count: int) -> list[TokenizedSample]:
    """Samples around the length at which half of all tokens are in longer ones; at least one, the shortest last."""
    order = sorted(samples, key=lambda sample: (-len(sample.ids), sample.index))
    half, seen, middle = sum(len(sample.ids) for sample in order) / 2, 0, 0
    for middle, sample in enumerate(order):  # noqa: B007 (read below)
        seen += len(sample.ids)
        if seen >= half:
            break
    start = max(0, min(middle - count // 2, len(order) - count))
    return order[start : start + count]


def _per_token(
    work: Callable[[list[TokenizedSample]], None], samples: list[TokenizedSample], device: torch.device
) -> float:
    """Seconds a token: the last sample warms up, and as many others are timed as PATIENCE allows, or itself alone."""
    *others, first = samples
    with _timed(device) as warm:
        work([first])
    chosen = others[: max(1, int(PATIENCE / max(warm[0], 1e-6)))] or [first]
    if warm[0] > PATIENCE:
        chosen = []
    if not chosen:
        return warm[0] / len(first.ids)
    with _timed(device) as took:
        work(chosen)
    return took[0] / sum(len(sample.ids) for sample in chosen)


@contextmanager
def _timed(device: torch.device) -> Iterator[list[float]]:
    """Gives a list that holds the seconds of the context, once it is left and the device is drained."""
    found: list[float] = []
    start = perf_counter()
    yield found
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    found.append(perf_counter() - start)


def describe(subject: Subject, plan: Schedule) -> str:
    """What a run will take, in minutes, tokens and forward passes, before it starts."""
    info, work = subject.corpus.info, plan.work
    parts = [f"one pass over {sample_count(info)} ({info.tokens:,} tokens)"] if work.tokens else []
    more = extra_work(subject.loaded.model) if subject.settings.experts == "all" else None
    if parts and more is not None:
        parts[0] += f", its experts on all tokens ({more:,.3g} times their work)"
    if work.calibrations:
        passes = sum(tokens for _, tokens in work.calibrations) // max(info.calibration.tokens, 1)
        parts.append(f"{passes} passes over {info.calibration.tokens:,} calibration tokens to smooth")
    if work.evaluated:
        told = f"about {forward_passes(work):.0f} passes over {work.evaluated:,} evaluation tokens"
        if work.single:
            told += f", {single_passes(work.single)} of them for single groups"
        if not work.by_damage:
            told += ", one of them backward too"
        parts.append(told)
    return f"about {minutes(plan.seconds)} from here: {' and '.join(parts)}"


def advise_samples(subject: Subject, plan: Schedule) -> str | None:
    """Which --samples would take five minutes, where the corpus takes longer; None where it does not."""
    if plan.seconds <= FIVE_MINUTES or not plan.work.tokens:
        return None
    info = subject.corpus.info
    count = samples_in(
        FIVE_MINUTES,
        plan.work,
        plan.speed,
        samples=info.samples,
        evaluation=info.evaluation.tokens,
        budget=subject.settings.evaluation_tokens,
    )
    if count is None:
        return "no choice of --samples would take five minutes here; --evaluation-tokens makes it shorter"
    return f"--samples {count} would take about five minutes here"


def _single_groups(subject: Subject) -> int:
    """How many fused groups will be simulated alone, if all have a damage."""
    wanted = find_single(subject.settings.single_groups)
    if wanted == 0:
        return 0
    inside = sum(group.layer is not None for group in discover(subject.loaded.model).groups)
    return inside if wanted is None else min(wanted, inside)
