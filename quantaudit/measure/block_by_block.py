"""Batches measured block by block: of a model whose weights are on disk, one block is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any

from quantaudit.common.progress import Advance, no_advance
from quantaudit.errors import MeasurementError
from quantaudit.measure.collector import StatisticsCollector
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.budget import UNLIMITED, activation_bytes, needs, room_for_inputs
from quantaudit.model.blockwise.input_store import InputStore, Room
from quantaudit.model.blockwise.lockstep import Watch, run_in_lockstep
from quantaudit.model.forward.batches import Batch, forward
from quantaudit.model.loading.load import LoadedModel


def run_by_block(
    loaded: LoadedModel,
    weights: BlockWeights,
    collector: StatisticsCollector,
    batches: Iterable[Batch],
    progress: Advance = no_advance,
) -> None:
    """Run batches with every site tapped, all of them through one block before the next; results are the same."""

    def turn(batch: Batch) -> None:
        collector.batch = batch

    through: set[tuple[int, int]] = set()

    def passed(batch: Batch, done: int, of: int) -> None:
        # Statistics of a token that comes several times depend on what comes between.
        if (id(batch), done) in through:
            raise MeasurementError(
                f"the model calls {weights.blocks[done - 1]} several times, and has to be in memory whole",
                where=f"sample {batch.samples[0].id}",
                hint="give it more memory",
            )
        through.add((id(batch), done))
        progress(batch.tokens * done // of - batch.tokens * (done - 1) // of)

    def left(block: int) -> None:
        collector.finish(weights.blocks[block])

    waiting = iter(batches)
    for first in waiting:  # the longest
        with InputStore(loaded.model, _room(loaded, weights, first)) as store:
            run_in_lockstep(
                loaded.model,
                weights.blocks,
                chain([first], waiting),
                partial(forward, loaded.model),
                store=store,
                watch=Watch(turn=turn, passed=passed, left=left),
            )
    weights.drop()


def _room(loaded: LoadedModel, weights: BlockWeights, largest: Batch) -> Room:
    """What of the budget is left for batches that wait. Raises UsageError where it is too small."""
    weights.drop()
    if weights.budget is None:
        return UNLIMITED
    config: Any = loaded.model.config
    rows, longest = largest.input_ids.shape
    batch = activation_bytes(config, rows, longest, eager=config._attn_implementation == "eager")
    return room_for_inputs(weights.budget, needs(weights, batch), loaded.device)
