"""One recorded pass over the evaluation tokens: calls of decoder blocks, and gradients inside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from quantaudit.common.progress import Advance, no_advance
from quantaudit.model.forward.batches import batches
from quantaudit.model.structure import linears
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.patch_forward import checkpointed
from quantaudit.simulate.replay.fisher import backward, differentiable
from quantaudit.simulate.replay.linear_sensitivity import LinearSensitivity, PriceList
from quantaudit.simulate.replay.recorded_calls import Calls, record_calls, record_gradients, watch_calls
from quantaudit.simulate.replay.residual_branch import ResidualBranches, find_residual_branches

GRAPH_BYTES = 1 << 30
"""What one sample's graph may take; beyond it, blocks run twice, and one block's graph is kept at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPass:
    """What replays need of one pass over the evaluation tokens.

    calls: of the blocks; replays forget them one block after the other. branches: where each group's change joins the
    residual stream. prices: of groups that are priced at their Linears. draws: backward passes for each sample; without
    any, there is nothing but calls.
    """

    calls: Calls
    branches: ResidualBranches = field(default_factory=dict)
    prices: PriceList = field(default_factory=dict)
    draws: int = 0


def record_forward(experiment: Experiment) -> RecordedPass:
    """A forward pass alone, which damage needs."""
    return RecordedPass(calls=record_calls(experiment.model, experiment.architecture.blocks, experiment.samples))


def record_backward(
    experiment: Experiment,
    linears: LinearSensitivity | None = None,
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Advance = no_advance,
) -> RecordedPass:
    """The same with what prices need: gradients behind every group. One backward pass for each draw.

    linears: groups that are priced at their Linears on the way. Score gradients are computed in float32 and rounded
    once to the model's dtype; in float16 very small ones underflow. Memory: inputs of all blocks and gradients at all
    branches, for all samples, and one sample's graph: GRAPH_BYTES, or one block's. The model is left unmodified.
    `progress` is called after each sample. Raises RuntimeError where an operation has no derivative, or memory runs
    out.
    """
    model, architecture, samples = experiment.model, experiment.architecture, experiment.samples
    generator = torch.Generator(experiment.device).manual_seed(seed)
    branches = find_residual_branches(model, architecture, min(samples, key=lambda sample: len(sample.ids)))
    ends = {
        path: sorted({branches[group.name].path for group in architecture.groups if group.layer == index})
        for index, path in enumerate(architecture.blocks)
    }
    calls: Calls = {path: [] for path in architecture.blocks}
    with differentiable(model):
        for batch in batches(samples, 1, pad=0, device=experiment.device):
            large = graph_bytes(model, architecture.blocks, batch.tokens) > GRAPH_BYTES
            with ExitStack() as stack, checkpointed(model, architecture.blocks if large else ()):
                watch_calls(stack, model, calls)
                record_gradients(stack, model, calls, ends)
                if linears is not None:
                    linears.watch(stack)
                backward(model, batch, stack.pop_all(), draws, generator)
            if linears is not None:
                linears.flush(full=False)
            progress()
    prices: PriceList = {}
    if linears is not None:
        linears.flush()
        prices = linears.prices(draws * sum(len(sample.ids) for sample in samples))
    return RecordedPass(calls=calls, branches=branches, prices=prices, draws=draws)


def graph_bytes(model: nn.Module, blocks: Sequence[str], tokens: int) -> int:
    """About what autograd keeps of the blocks: inputs and outputs of Linears, twice for what runs between them.

    Right within a factor of two for transformers, too little by up to five for state-space models.
    """
    weights: list[Any] = [linear.weight for path in blocks for linear in linears(model.get_submodule(path)).values()]
    return int(2 * tokens * sum(sum(weight.shape) * weight.element_size() for weight in weights))
