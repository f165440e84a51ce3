"""How fast this machine is at a model that is loaded: a few samples, timed after a pass that warms up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.budget import UNLIMITED
from quantaudit.model.blockwise.input_store import InputStore
from quantaudit.model.blockwise.lockstep import run_in_lockstep
from quantaudit.model.blockwise.memory import available_bytes
from quantaudit.model.forward.batches import batches, forward, last_logit_only
from quantaudit.model.structure import hidden_size
from quantaudit.pipeline.passes import measure_samples
from quantaudit.pipeline.plan.probe import TAPPED, rounding_seconds
from quantaudit.pipeline.prepare import AuditInputs, shapes_in_blocks
from quantaudit.simulate.cost import Speed
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.quantized.plan import Plan

PROBED = 3
"""Samples that are timed."""
_BLOCKS = 2
"""Decoder blocks that are timed of a model that runs block by block."""
ENOUGH, MOST_TOKENS = 0.5, 8192
"""Seconds that two blocks are to take for what they take to say something, and tokens that wait for them at most."""
_NO_CHANGE = Plan(name="", title="", schemes={}, qparams={}, groups=0)
PATIENCE = 2.5
"""Seconds that one kind of pass is timed for, about."""


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
    tokens = len(few[0].ids)
    cold, once = two_blocks(few), two_blocks(few)
    more = enough(inputs.corpus.samples, samples, once / tokens)
    computing, reading = split_time(once, tokens, two_blocks(more), sum(len(sample.ids) for sample in more))
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


def enough(samples: tuple[TokenizedSample, ...], least: list[TokenizedSample], seconds: float) -> list[TokenizedSample]:
    """Typical samples that take ENOUGH time at so many seconds a token; no fewer than `least`, MOST_TOKENS or all."""
    each = sum(len(sample.ids) for sample in least) / len(least)
    tokens = min(ENOUGH / max(seconds, 1e-9), MOST_TOKENS)
    return typical(samples, max(len(least), min(int(tokens / each), len(samples))))


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
