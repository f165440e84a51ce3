"""One recorded pass over the evaluation tokens: calls of decoder blocks, and gradients inside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from quantaudit.common.progress import Advance, in_steps, no_advance
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.budget import UNLIMITED, half, logits_bytes, room_to_run
from quantaudit.model.blockwise.input_store import InputStore, Room
from quantaudit.model.forward.batches import Batch, batches, forward, last_logit_only
from quantaudit.model.structure import hidden_size, linears
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.patch_forward import checkpointed
from quantaudit.simulate.replay.fisher import backward, differentiable, logits_with_graph
from quantaudit.simulate.replay.linear_sensitivity import LinearSensitivity, PriceList
from quantaudit.simulate.replay.recorded_calls import Calls, record_calls, record_gradients, watch_calls
from quantaudit.simulate.replay.residual_branch import ResidualBranches, find_residual_branches
from quantaudit.simulate.replay.stored_calls import StoredCalls
from quantaudit.simulate.replay.streamed_pass import StreamedPass

GRAPH_BYTES = 1 << 30
"""What one sample's graph may take; beyond it, blocks run twice, and one block's graph is kept at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPass:
    """What replays need of one pass over the evaluation tokens.

    calls: of the blocks; replays forget them one block after the other. held: closes what they lie in. branches: where
    each group's change joins the residual stream. prices: of groups that are priced at their Linears. draws: backward
    passes for each sample; without any, there is nothing but calls.
    """

    calls: Calls | StoredCalls
    held: ExitStack = field(default_factory=ExitStack)
    branches: ResidualBranches = field(default_factory=dict)
    prices: PriceList = field(default_factory=dict)
    draws: int = 0

    def close(self) -> None:
        """Give back what calls lie in."""
        self.held.close()


def record_forward(experiment: Experiment) -> RecordedPass:
    """A forward pass alone, which damage needs."""
    if experiment.weights is not None:
        return _forward_by_block(experiment, experiment.weights)
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
    generator = torch.Generator(experiment.device).manual_seed(seed)
    if experiment.weights is not None:
        return _backward_by_block(experiment, experiment.weights, linears, draws, generator, progress)
    model, architecture, samples = experiment.model, experiment.architecture, experiment.samples
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


def _forward_by_block(experiment: Experiment, weights: BlockWeights) -> RecordedPass:
    model = experiment.model
    dealt = list(batches(experiment.samples, 1, pad=0, device=experiment.device))
    room = half(room_to_run(model, weights, dealt[0].input_ids))
    with ExitStack() as stack:
        calls = StoredCalls(weights.blocks, stack.enter_context(InputStore(model, room)))
        run = StreamedPass(model, weights, experiment.architecture, dealt, calls, 0)
        with run.recording(), last_logit_only(model), InputStore(model, room) as store:
            run.forward(partial(forward, model), store)
        return RecordedPass(calls=calls, held=stack.pop_all())


def _backward_by_block(
    experiment: Experiment,
    weights: BlockWeights,
    linears: LinearSensitivity | None,
    draws: int,
    generator: torch.Generator,
    progress: Advance,
) -> RecordedPass:
    """The same of a model whose blocks are on disk: all samples side by side, there and back."""
    model, samples = experiment.model, experiment.samples
    dealt = list(batches(samples, 1, pad=0, device=experiment.device))
    shortest = min(samples, key=lambda sample: len(sample.ids)).index
    steps = in_steps(progress, (1 + draws) * len(dealt) * len(weights.blocks), len(dealt))
    roots: list[list[tuple[GradientEdge, Tensor]]] = [[] for _ in range(draws)]
    with ExitStack() as stack:
        store = stack.enter_context(InputStore(model, _room_for_gradients(experiment, weights, dealt)))
        calls = StoredCalls(weights.blocks, store)
        probe = next(number for number, batch in enumerate(dealt) if batch.samples[0].index == shortest)
        run = StreamedPass(model, weights, experiment.architecture, dealt, calls, probe, steps)

        def one(batch: Batch) -> None:
            with torch.enable_grad():
                logits = logits_with_graph(model, batch)
            for pairs, back in zip(roots, run.through_head(logits, draws, generator), strict=True):
                pairs += back
            if linears is not None:
                linears.flush(full=False, pending=True)

        with differentiable(model), run.recording(), ExitStack() as recorders:
            if linears is not None:
                linears.watch(recorders)
                run.returned, run.left = linears.set_aside, lambda _index: linears.flush_aside()
            with InputStore(model, UNLIMITED) as waiting:  # what has a graph cannot be moved
                run.forward(one, waiting)
            for draw, pairs in enumerate(roots, 1):
                edges, gradients = zip(*pairs, strict=True)
                torch.autograd.backward(edges, gradients, retain_graph=draw < draws)
        prices: PriceList = {}
        if linears is not None:
            linears.flush()
            prices = linears.prices(draws * sum(len(sample.ids) for sample in samples))
        return RecordedPass(calls=calls, held=stack.pop_all(), branches=run.branches, prices=prices, draws=draws)


def _room_for_gradients(experiment: Experiment, weights: BlockWeights, dealt: Sequence[Batch]) -> Room:
    """Where calls may lie in memory: next to one block's graph, a sample's logits, and all that waits with a graph."""
    model, tokens = experiment.model, dealt[0].tokens
    graph = max(graph_bytes(model, [path], tokens) for path in weights.blocks)
    graph += 2 * sum(batch.tokens for batch in dealt) * hidden_size(model) * next(model.parameters()).element_size()
    return room_to_run(model, weights, dealt[0].input_ids, logits=2 * logits_bytes(model, tokens), graph=graph)


def graph_bytes(model: nn.Module, blocks: Sequence[str], tokens: int) -> int:
    """About what autograd keeps of the blocks: inputs and outputs of Linears, twice for what runs between them.

    Right within a factor of two for transformers, too little by up to five for state-space models.
    """
    weights: list[Any] = [linear.weight for path in blocks for linear in linears(model.get_submodule(path)).values()]
    return int(2 * tokens * sum(sum(weight.shape) * weight.element_size() for weight in weights))
