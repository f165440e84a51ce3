"""Batches measured block by block: of a model whose weights are on disk, one block is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.common.progress import Advance, no_advance
from quantaudit.errors import MeasurementError
from quantaudit.measure.collector import StatisticsCollector
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.budget import UNLIMITED, activation_bytes, needs, room_for_inputs
from quantaudit.model.blockwise.input_store import InputStore, Room
from quantaudit.model.blockwise.lockstep import Watch, run_in_lockstep
from quantaudit.model.forward.batches import Batch, forward
from quantaudit.model.loading.load import LoadedModel

_FEW = 8
"""Tokens that are run alone first."""


def run_by_block(
    loaded: LoadedModel,
    weights: BlockWeights,
    collector: StatisticsCollector,
    batches: Iterable[Batch],
    progress: Advance = no_advance,
) -> None:
    """Run batches with every site tapped, all of them through one block before the next; results are the same.

    Raises MeasurementError where batches that run side by side change each other, which a few tokens show that have run
    alone before, and where a block is called several times.
    """
    waiting = iter(batches)
    for first in waiting:  # the longest
        run = _Run(loaded.model, weights, collector, progress, _few_tokens(first))
        with collector.ignoring(run.few):
            run.alone = forward(loaded.model, run.few)
        with InputStore(loaded.model, _room(loaded, weights, first)) as store, collector.ignoring(run.few):
            run_in_lockstep(
                loaded.model,
                weights.blocks,
                chain([run.few, first], waiting),
                run.forward,
                store=store,
                watch=Watch(turn=run.turn, passed=run.passed, left=run.left),
            )
    weights.drop()


@dataclass(slots=True)
class _Run:
    """Batches on their way through a model. few: one that is not counted; alone: its logits when it ran alone."""

    model: nn.Module
    weights: BlockWeights
    collector: StatisticsCollector
    progress: Advance
    few: Batch
    alone: Tensor | None = None
    through: set[tuple[int, int]] = field(default_factory=set)

    def forward(self, batch: Batch) -> None:
        """Run a batch, which waits on its way."""
        logits = forward(self.model, batch)
        if batch is self.few and not _same_bits(logits, self.alone):
            raise MeasurementError(
                "batches that run side by side change each other: the model keeps something of them in its modules",
                hint="give it enough memory to run whole",
            )

    def turn(self, batch: Batch) -> None:
        """This batch goes on."""
        self.collector.batch = batch

    def passed(self, batch: Batch, done: int, of: int) -> None:
        """A batch is through as many of so many blocks."""
        # Statistics of a token that comes several times depend on what comes between.
        if (id(batch), done) in self.through:
            raise MeasurementError(
                f"the model calls {self.weights.blocks[done - 1]} several times",
                where=f"sample {batch.samples[0].id}",
                hint="give it enough memory to run whole",
            )
        self.through.add((id(batch), done))
        if batch is not self.few:
            self.progress(batch.tokens * done // of - batch.tokens * (done - 1) // of)

    def left(self, block: int) -> None:
        """All batches are through a block."""
        self.collector.finish(self.weights.blocks[block])


def _few_tokens(batch: Batch) -> Batch:
    """The first tokens of a batch of text; a batch with images as it is."""
    if batch.inputs:
        return replace(batch)
    sample = batch.samples[0]
    ids = sample.ids[:_FEW]
    return Batch(
        samples=(replace(sample, ids=ids, assistant=None),),
        input_ids=torch.from_numpy(ids.copy())[None].to(batch.input_ids.device),
    )


def _same_bits(logits: Tensor, other: Tensor | None) -> bool:
    """Whether they are equal, NaN where the other is."""
    return other is not None and bool(((logits == other) | (logits.isnan() & other.isnan())).all())


def _room(loaded: LoadedModel, weights: BlockWeights, largest: Batch) -> Room:
    """What of the budget is left for batches that wait. Raises UsageError where it is too small."""
    weights.drop()
    if weights.budget is None:
        return UNLIMITED
    config: Any = loaded.model.config
    rows, longest = largest.input_ids.shape
    batch = activation_bytes(config, rows, longest, eager=config._attn_implementation == "eager")
    return room_for_inputs(weights.budget, needs(weights, batch), loaded.device)
