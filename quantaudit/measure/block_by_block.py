"""Batches measured block by block: of a model whose weights are on disk, one block is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from torch import Tensor, nn

from quantaudit.common.progress import Advance, no_advance
from quantaudit.errors import MeasurementError
from quantaudit.measure.follower import Follower
from quantaudit.model.blockwise.alone import check_same, few_tokens
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.budget import room_to_run
from quantaudit.model.blockwise.input_store import InputStore
from quantaudit.model.blockwise.lockstep import Watch, run_in_lockstep
from quantaudit.model.forward.batches import Batch, forward
from quantaudit.model.loading.load import LoadedModel


def run_by_block(
    loaded: LoadedModel,
    weights: BlockWeights,
    collector: Follower,
    batches: Iterable[Batch],
    progress: Advance = no_advance,
) -> None:
    """Run batches with every site tapped, all of them through one block before the next; results are the same.

    Raises MeasurementError where batches that run side by side change each other, which a few tokens show that have run
    alone before, and where a block is called several times.
    """
    waiting = iter(batches)
    for first in waiting:  # the longest
        run = _Run(loaded.model, weights, collector, progress, few_tokens(first))
        with collector.ignoring(run.few):
            run.alone = forward(loaded.model, run.few)
        room = room_to_run(loaded.model, weights, first.input_ids)
        with InputStore(loaded.model, room) as store, collector.ignoring(run.few):
            run_in_lockstep(
                loaded.model,
                weights.blocks,
                chain([run.few, first], waiting),
                run.forward,
                store=store,
                watch=Watch(turn=run.turn, passed=run.passed, left=run.left),
            )
        weights.side_by_side = True
    weights.drop()


@dataclass(slots=True)
class _Run:
    """Batches on their way through a model. few: one that is not counted; alone: its logits when it ran alone."""

    model: nn.Module
    weights: BlockWeights
    collector: Follower
    progress: Advance
    few: Batch
    alone: Tensor | None = None
    through: set[tuple[int, int]] = field(default_factory=set)

    def forward(self, batch: Batch) -> None:
        """Run a batch, which waits on its way."""
        logits = forward(self.model, batch)
        if batch is self.few:
            check_same(logits, self.alone)

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
