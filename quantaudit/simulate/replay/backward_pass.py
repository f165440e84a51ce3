"""One pass over the evaluation tokens, and what replays need of it: calls of decoder blocks, gradients inside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from quantaudit.common.progress import Advance, no_advance
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.forward.batches import batches
from quantaudit.model.sites import Architecture
from quantaudit.model.structure import linears
from quantaudit.simulate.replay.fisher import backward, differentiable
from quantaudit.simulate.replay.linear_sensitivity import LinearPrices, PriceList
from quantaudit.simulate.replay.patch_forward import checkpointed
from quantaudit.simulate.replay.recorded_calls import Calls, record_calls, watch_calls, watch_scores
from quantaudit.simulate.replay.residual_branch import Carriers, find_carriers

GRAPH_BYTES = 1 << 30
"""What one sample's graph may take; beyond it, blocks run twice, and one block's graph is kept at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """calls: of the blocks; replays forget them one block after the other. carriers: where changes are felt. prices: of
    groups that are priced at their Linears. draws: ways back for each sample; without any, there is nothing but calls.
    """

    calls: Calls
    carriers: Carriers = field(default_factory=dict)
    prices: PriceList = field(default_factory=dict)
    draws: int = 0


def pass_forward(model: nn.Module, blocks: Sequence[str], samples: Sequence[TokenizedSample]) -> Passage:
    """What damage needs."""
    return Passage(calls=record_calls(model, blocks, samples))


def pass_back(
    model: nn.Module,
    architecture: Architecture,
    samples: Sequence[TokenizedSample],
    linears: LinearPrices | None = None,
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Advance = no_advance,
) -> Passage:
    """What prices need too: what the logits feel behind every group. One backward pass for each draw.

    linears: groups that are priced at their Linears on the way. Scores are computed in float32 and rounded once to the
    model's dtype; in float16 very small gradients underflow. Memory: inputs of all blocks and gradients at all
    carriers, for all samples, and one sample's graph: GRAPH_BYTES, or one block's. The model is left as it was.
    `progress` is called after each sample. Raises RuntimeError where an operation has no derivative, or memory runs
    out.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    carriers = find_carriers(model, architecture, min(samples, key=lambda sample: len(sample.ids)))
    wanted = {
        path: sorted({carriers[group.name].path for group in architecture.groups if group.layer == index})
        for index, path in enumerate(architecture.blocks)
    }
    calls: Calls = {path: [] for path in architecture.blocks}
    with differentiable(model):
        for batch in batches(samples, 1, pad=0, device=device):
            large = graph_bytes(model, architecture.blocks, batch.tokens) > GRAPH_BYTES
            with ExitStack() as stack, checkpointed(model, architecture.blocks if large else ()):
                watch_calls(stack, model, calls)
                watch_scores(stack, model, calls, wanted)
                if linears is not None:
                    linears.watch(stack)
                backward(model, batch, stack.pop_all(), draws, generator)
            if linears is not None:
                linears.settle(full=False)
            progress()
    prices: PriceList = {}
    if linears is not None:
        linears.settle()
        prices = linears.prices(draws * sum(len(sample.ids) for sample in samples))
    return Passage(calls=calls, carriers=carriers, prices=prices, draws=draws)


def graph_bytes(model: nn.Module, blocks: Sequence[str], tokens: int) -> int:
    """About what autograd keeps of the blocks: inputs and outputs of Linears, twice for what runs between them.

    Right within a factor of two for transformers, too little by up to five for state-space models.
    """
    weights: list[Any] = [linear.weight for path in blocks for linear in linears(model.get_submodule(path)).values()]
    return int(2 * tokens * sum(sum(weight.shape) * weight.element_size() for weight in weights))
