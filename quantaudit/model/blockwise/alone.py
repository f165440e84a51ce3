"""Whether batches that run side by side run as they do alone: not where modules keep something of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from quantaudit.errors import MeasurementError
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.budget import room_to_run
from quantaudit.model.blockwise.input_store import InputStore
from quantaudit.model.blockwise.lockstep import run_in_lockstep
from quantaudit.model.forward.batches import Batch, forward, last_logit_only

_FEW = 8
"""Tokens that are run alone first."""
_OTHERS = 3
"""Batches that they are run beside then."""


def few_tokens(batch: Batch) -> Batch:
    """The first tokens of a batch of text; a batch with images as it is."""
    if batch.inputs:
        return replace(batch)
    sample = batch.samples[0]
    ids = sample.ids[:_FEW]
    return Batch(
        samples=(replace(sample, ids=ids, assistant=None),),
        input_ids=torch.from_numpy(ids.copy())[None].to(batch.input_ids.device),
    )


def check_same(logits: Tensor, alone: Tensor | None) -> None:
    """Raises MeasurementError where a batch does not have the very logits that it had alone; NaN equals NaN."""
    if alone is None or not bool(((logits == alone) | (logits.isnan() & alone.isnan())).all()):
        raise MeasurementError(
            "batches that run side by side change each other: the model keeps something of them in its modules",
            hint="give it enough memory to run whole",
        )


def check_side_by_side(model: nn.Module, weights: BlockWeights, batches: Iterable[Batch]) -> None:
    """Run a few tokens alone, and next to others; once for a model. Raises MeasurementError where that differs."""
    if weights.side_by_side:
        return
    few = [few_tokens(batch) for batch, _ in zip(batches, range(1 + _OTHERS), strict=False)]

    def run(batch: Batch) -> None:
        logits = forward(model, batch)
        if batch is few[0]:
            check_same(logits, alone)

    with last_logit_only(model):
        alone = forward(model, few[0])
        with InputStore(model, room_to_run(model, weights, few[0].input_ids)) as store:
            run_in_lockstep(model, weights.blocks, few, run, store=store)
    weights.drop()
    weights.side_by_side = True
