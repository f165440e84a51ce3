"""Variants of a model on the same samples, side by side and block by block, where its weights are on disk.

Each block is read once for all of them: for the unmodified model and every sample first, then for one variant after the
other. At the head samples take turns instead, so that the unmodified logits of one sample alone are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from quantaudit.common.progress import Advance, in_steps, no_advance
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.budget import logits_bytes, room_to_run
from quantaudit.model.blockwise.input_store import InputStore
from quantaudit.model.blockwise.lockstep import Watch, run_in_lockstep
from quantaudit.model.forward.batches import Batch, batches

AT_ONCE = 16
"""Variants that run side by side, at most: what waits between two blocks grows with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sample under one variant of the model. number: of the sample; variant: 0 for the unmodified model."""

    batch: Batch
    number: int
    variant: int

    @property
    def sample(self) -> TokenizedSample:
        """The only one of the batch."""
        return self.batch.samples[0]


Patched = Callable[[Job, int | None], AbstractContextManager[None]]
"""The context in which a job runs through a block, by its index; None for what is outside of all."""


def jobs_of(model: nn.Module, samples_by_variant: Sequence[Sequence[TokenizedSample]]) -> list[Job]:
    """All jobs. samples_by_variant: those of the unmodified model, which are all, then those of each variant."""
    device = next(model.parameters()).device
    dealt = {batch.samples[0].index: batch for batch in batches(samples_by_variant[0], device=device)}
    return [
        Job(batch=dealt[sample.index], number=number, variant=variant)
        for variant, samples in enumerate(samples_by_variant)
        for number, sample in enumerate(samples_by_variant[0])
        if any(sample.index == other.index for other in samples)
    ]


def run_side_by_side(
    model: nn.Module,
    weights: BlockWeights,
    jobs: Sequence[Job],
    run: Callable[[Job], None],
    patched: Patched,
    progress: Advance = no_advance,
) -> None:
    """Call `run`, which is to call the model, for every job. `progress` is called with every block that one has passed.

    Raises UsageError where the budget is too small for a block and the logits of a sample.
    """
    if not jobs:
        return
    stops, head = weights.blocks, _head(model)
    if head is not None:
        stops = (*stops, head)

    def turn(job: Job, at: int) -> Any:
        return (job.number, job.variant) if at == len(weights.blocks) else (job.variant, job.number)

    def during(job: Job, at: int | None) -> AbstractContextManager[None]:
        return patched(job, None if at == len(weights.blocks) else at)

    def passed(_job: Job, done: int, _of: int) -> None:
        if done <= len(weights.blocks):
            progress()

    longest = max((job.batch for job in jobs), key=lambda batch: batch.tokens)
    # Of the sample without a change and with it; what the model makes of them on the way may be in float32.
    room = room_to_run(model, weights, longest.input_ids, logits=2 * logits_bytes(model, longest.tokens))
    try:
        with InputStore(model, room) as store:
            run_in_lockstep(model, stops, jobs, run, store=store, watch=Watch(during=during, passed=passed), order=turn)
    finally:
        weights.drop()


def shared_progress(progress: Advance, jobs: Sequence[Job], weights: BlockWeights) -> Advance:
    """What calls `progress` once for each job of a variant, evenly over all blocks that all jobs pass."""
    return in_steps(progress, len(jobs) * len(weights.blocks), sum(job.variant > 0 for job in jobs))


def _head(model: Any) -> str | None:
    """Path of the output projection."""
    head = model.get_output_embeddings()
    return next((path for path, module in model.named_modules() if module is head), None)
