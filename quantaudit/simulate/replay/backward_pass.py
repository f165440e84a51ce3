"""One recorded pass over the evaluation tokens: calls of decoder blocks, and gradients inside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from quantaudit.common.progress import Advance, in_steps, no_advance
from quantaudit.common.ranks.team import agreed
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.budget import UNLIMITED, half, logits_bytes, room_to_run
from quantaudit.model.blockwise.input_store import InputStore, Room
from quantaudit.model.blockwise.memory import give_back
from quantaudit.model.forward.batches import Batch, batches, forward, last_logit_only
from quantaudit.model.structure import hidden_size, token_shares
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.patch_forward import checkpointed
from quantaudit.simulate.replay.fisher import backward, differentiable, label_states, logits_with_graph
from quantaudit.simulate.replay.linear_sensitivity import LinearSensitivity, PriceList
from quantaudit.simulate.replay.recorded_calls import (
    Calls,
    dealt_batches,
    record_calls,
    record_gradients,
    watch_calls,
)
from quantaudit.simulate.replay.residual_branch import ResidualBranches, find_residual_branches
from quantaudit.simulate.replay.stored_calls import StoredCalls
from quantaudit.simulate.replay.streamed_pass import StreamedPass

GRAPH_BYTES = 1 << 30
"""What one sample's graph may take; beyond it, blocks run twice, and one block's graph is kept at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPass:
    """What replays need of one pass over the evaluation tokens of this rank.

    calls: of the blocks; replays forget them one block after the other. held: closes what they lie in. branches: where
    each group's change joins the residual stream. prices: of groups that are priced at their Linears, over the tokens
    of all ranks. draws: backward passes for each sample; without any, there is nothing but calls.
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
    `progress` is called after each sample. Raises RuntimeError on all ranks where on any of them an operation has no
    derivative, or memory runs out.
    """
    labels = _Labels.drawn(experiment, draws, seed)

    def record() -> RecordedPass:
        if experiment.weights is not None:
            return _backward_by_block(experiment, experiment.weights, linears, labels, progress)
        return _backward_in_memory(experiment, linears, labels, progress)

    recorded = agreed(record, (RuntimeError, AssertionError), undo=RecordedPass.close)
    if linears is None:
        return recorded
    prices = linears.prices(draws * sum(len(sample.ids) for sample in experiment.samples))
    return replace(recorded, prices=prices)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """Labels to draw for every sample, by its number: the same whichever rank it runs on. states: of the generator."""

    draws: int
    generator: torch.Generator
    states: Sequence[Tensor]

    @classmethod
    def drawn(cls, experiment: Experiment, draws: int, seed: int) -> _Labels:
        """For all samples, the longest first."""
        generator = torch.Generator(experiment.device).manual_seed(seed)
        order = [batch.tokens for batch in batches(experiment.samples, device=experiment.device)]
        return cls(draws=draws, generator=generator, states=label_states(order, draws, generator))

    def of(self, number: int) -> torch.Generator:
        """What the labels of one sample are drawn with."""
        self.generator.set_state(self.states[number])
        return self.generator


def _shortest(samples: Sequence[TokenizedSample]) -> TokenizedSample:
    return min(samples, key=lambda sample: len(sample.ids))


def _backward_in_memory(
    experiment: Experiment, linears: LinearSensitivity | None, labels: _Labels, progress: Advance
) -> RecordedPass:
    model, architecture, samples = experiment.model, experiment.architecture, experiment.samples
    branches = find_residual_branches(model, architecture, _shortest(samples))
    ends = {
        path: sorted({branches[group.name].path for group in architecture.groups if group.layer == index})
        for index, path in enumerate(architecture.blocks)
    }
    calls: Calls = {path: [] for path in architecture.blocks}
    with differentiable(model):
        for number, batch in dealt_batches(samples, experiment.device):
            large = graph_bytes(model, architecture.blocks, batch.tokens) > GRAPH_BYTES
            with ExitStack() as stack, checkpointed(model, architecture.blocks if large else ()):
                watch_calls(stack, model, calls, number)
                record_gradients(stack, model, calls, ends)
                if linears is not None:
                    linears.number = number
                    linears.watch(stack)
                backward(model, batch, stack.pop_all(), labels.draws, labels.of(number))
            if linears is not None:
                linears.flush(full=False)
            progress()
    if linears is not None:
        linears.flush()
    return RecordedPass(calls=calls, branches=branches, draws=labels.draws)


def _forward_by_block(experiment: Experiment, weights: BlockWeights) -> RecordedPass:
    model = experiment.model
    dealt = dealt_batches(experiment.samples, experiment.device)
    if not dealt:
        return RecordedPass(calls={path: [] for path in weights.blocks})
    room = half(room_to_run(model, weights, dealt[0][1].input_ids))
    with ExitStack() as stack:
        calls = StoredCalls(weights.blocks, stack.enter_context(InputStore(model, room)))
        run = StreamedPass(model, weights, experiment.architecture, dealt, calls, dealt[0][0])
        with run.recording(), last_logit_only(model), InputStore(model, room) as store:
            run.forward(partial(forward, model), store)
        return RecordedPass(calls=calls, held=stack.pop_all())


def _backward_by_block(
    experiment: Experiment,
    weights: BlockWeights,
    linears: LinearSensitivity | None,
    labels: _Labels,
    progress: Advance,
) -> RecordedPass:
    """The same of a model whose blocks are on disk: all samples side by side, there and back."""
    model, draws = experiment.model, labels.draws
    dealt = dealt_batches(experiment.samples, experiment.device)
    if not dealt:
        return RecordedPass(calls={path: [] for path in weights.blocks}, draws=draws)
    guests = _guests(experiment, dealt)
    steps = in_steps(progress, (1 + draws) * len(dealt) * len(weights.blocks), len(dealt))
    roots: list[list[tuple[GradientEdge, Tensor]]] = [[] for _ in range(draws)]
    with ExitStack() as stack:
        room = _room_for_gradients(experiment, weights, dealt)
        if linears is not None:  # gradients of logits are the largest of what it records
            linears.most = min(linears.most, room.device // 4)
            room = replace(room, device=room.device - linears.most)
        store = stack.enter_context(InputStore(model, room))
        calls = StoredCalls(weights.blocks, store)
        probe = _number_of(_shortest(experiment.samples), [*dealt, *guests])
        run = StreamedPass(model, weights, experiment.architecture, [*dealt, *guests], calls, probe, steps)
        run.guests = {number for number, _ in guests}

        def one(batch: Batch) -> None:
            if run.number in run.guests:
                forward(model, batch)
                return
            with torch.enable_grad():
                logits = logits_with_graph(model, batch)
            for pairs, back in zip(roots, run.through_head(logits, draws, labels.of(run.number)), strict=True):
                pairs += back
            if linears is not None:
                linears.flush(full=False, pending=True)

        with differentiable(model), run.recording(), ExitStack() as recorders:
            if linears is not None:
                linears.watch(recorders)
                run.turned = partial(setattr, linears, "number")
                run.returned, run.left = linears.set_aside, lambda _index: linears.flush_aside()
            with InputStore(model, UNLIMITED) as waiting:  # what has a graph cannot be moved
                run.forward(one, waiting)
            for draw, pairs in enumerate(roots, 1):
                edges, gradients = zip(*pairs, strict=True)
                torch.autograd.backward(edges, gradients, retain_graph=draw < draws)
        if linears is not None:
            linears.flush()
        give_back()
        return RecordedPass(calls=calls, held=stack.pop_all(), branches=run.branches, draws=draws)


def _guests(experiment: Experiment, dealt: Sequence[tuple[int, Batch]]) -> list[tuple[int, Batch]]:
    """The sample that shows residual branches, where it is another rank's: it runs here too, without gradients."""
    shortest = _shortest(experiment.samples)
    if any(batch.samples[0].index == shortest.index for _, batch in dealt):
        return []
    everything = enumerate(batches(experiment.samples, device=experiment.device))
    return [(number, batch) for number, batch in everything if batch.samples[0].index == shortest.index]


def _number_of(sample: TokenizedSample, numbered: Sequence[tuple[int, Batch]]) -> int:
    return next(number for number, batch in numbered if batch.samples[0].index == sample.index)


def _room_for_gradients(experiment: Experiment, weights: BlockWeights, dealt: Sequence[tuple[int, Batch]]) -> Room:
    """Where calls may lie in memory: next to one block's graph, a sample's logits, and all that waits with a graph."""
    model, longest = experiment.model, dealt[0][1]
    tokens = longest.tokens
    graph = max(graph_bytes(model, [path], tokens) for path in weights.blocks)
    graph += 2 * sum(batch.tokens for _, batch in dealt) * hidden_size(model) * next(model.parameters()).element_size()
    return room_to_run(model, weights, longest.input_ids, logits=2 * logits_bytes(model, tokens), graph=graph)


def graph_bytes(model: nn.Module, blocks: Sequence[str], tokens: int) -> int:
    """About what autograd keeps of the blocks: inputs and outputs of Linears, twice for what runs between them.

    Right within a factor of two for transformers, too little by up to five for state-space models.
    """
    parts: list[tuple[Any, float]] = [part for path in blocks for part in token_shares(model, path).values()]
    each = (share * sum(linear.weight.shape) * linear.weight.element_size() for linear, share in parts)
    return int(2 * tokens * sum(each))
