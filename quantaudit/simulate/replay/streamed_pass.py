"""One pass over all samples, with or without gradients, of a model whose decoder blocks are on disk.

Samples go forward side by side, and each call of a block is recorded. For gradients a block is one node of autograd's
graph for each sample: it computes without a graph, and when gradients come back it is run again from its recorded call,
with one. PyTorch goes through nodes from the latest to the earliest. So all samples come back through one block before
the block that lies before it, and each block is read once; another order would cost loads of weights, and change
nothing. Whatever lies between blocks, or is handed past some of them, is autograd's own business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from quantaudit.common.progress import Advance, no_advance
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.blockwise.input_store import InputStore
from quantaudit.model.blockwise.lockstep import Watch, run_in_lockstep
from quantaudit.model.forward.batches import Batch
from quantaudit.model.sites import Architecture
from quantaudit.simulate.patch_forward import replace_forward
from quantaudit.simulate.replay.fisher import sampled_score_gradients
from quantaudit.simulate.replay.nested import Place, detached, item_at, mapped, tensors_in, unknown_in, written
from quantaudit.simulate.replay.recorded_calls import Call, record_gradients
from quantaudit.simulate.replay.residual_branch import ResidualBranch, branches_of_block
from quantaudit.simulate.replay.stored_calls import StoredCalls


@dataclass(slots=True, eq=False)
class _Visit:
    """One call of a block. number: of the sample. slots: for each tensor of the call, which of the inputs with a graph
    it is; None for one without. places: of what the block has written into mappings.
    """

    index: int
    number: int
    call: Call
    slots: list[int | None]
    places: list[Place] = field(default_factory=list)


class _Block(torch.autograd.Function):
    """A decoder block as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, run: StreamedPass, visit: _Visit, made: list[Any], *_inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.visit = run, visit
        ctx.set_materialize_grads(False)
        made.append(run.without_graph(visit))
        # Views of what the block has made would be views of nothing that the graph knows.
        return tuple(tensor.detach() for tensor in tensors_in(made[0]) if tensor.is_floating_point())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return None, None, None, *ctx.run.with_graph(ctx.visit, gradients)


class StreamedPass:
    """Samples on their way through a model whose blocks are on disk, with everything that is recorded of them.

    batches: with the numbers of their samples. branches: where each group's change joins the residual stream, known
    once gradients have come back; probe: number of the sample that shows it. guests: numbers of samples that run for
    that alone, without gradients, and are not recorded. turned: called with a sample's number when it goes on;
    returned: when its gradients are through a block; left: with a block's index when those of all samples are.
    """

    def __init__(
        self,
        model: Any,
        weights: BlockWeights,
        architecture: Architecture,
        batches: Sequence[tuple[int, Batch]],
        calls: StoredCalls,
        probe: int,
        progress: Advance = no_advance,
    ) -> None:
        self.branches: dict[str, ResidualBranch] = {}
        self._model, self._weights, self._architecture = model, weights, architecture
        self._calls, self._probe, self._progress = calls, probe, progress
        self._batches = [batch for _, batch in batches]
        self._numbers = {id(batch): number for number, batch in batches}
        self.number = 0
        self._last_returned: Call | None = None
        self.guests: set[int] = set()
        self._inside = False
        self._visits: dict[int, list[_Visit]] = {index: [] for index in range(len(weights.blocks))}
        self._latest: dict[int, _Visit] = {}
        self._returned: Counter[int] = Counter()
        self.turned: Callable[[int], None] = lambda _number: None
        self.returned: Callable[[int], None] = lambda _number: None
        self.left: Callable[[int], None] = lambda _index: None
        self._forwards: list[Any] = [model.get_submodule(path).forward for path in weights.blocks]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the context blocks record their calls, and are single nodes of a graph where there is one."""
        with ExitStack() as stack:
            stack.callback(self._weights.drop)
            stack.callback(self._put_last_away)
            for index, path in enumerate(self._weights.blocks):
                replace_forward(stack, self._model.get_submodule(path), partial(self._called, index))
            yield

    def forward(self, run: Any, store: InputStore) -> None:
        """Call `run` for every batch, side by side; within `recording`."""
        watch: Watch[Batch] = Watch(turn=self._turn, passed=self._passed)
        run_in_lockstep(self._model, self._weights.blocks, self._batches, run, store=store, watch=watch)

    def through_head(
        self, logits: Tensor, draws: int, generator: torch.Generator
    ) -> Iterator[list[tuple[GradientEdge, Tensor]]]:
        """For each draw, gradients at what the blocks return, from labels that are drawn from the logits.

        What lies behind the last block is done with then, and its graph is gone. A model whose logits depend on
        something else too has the gradients of its logits themselves.
        """
        edge, values = get_gradient_edge(logits), logits.detach()
        edges = _behind(edge, self._latest.get(self.number))
        for draw in range(draws):
            gradients, last = sampled_score_gradients(values, generator), draw + 1 == draws
            if edges is None:
                yield [(edge, gradients)]
                continue
            back = torch.autograd.grad([edge], edges, [gradients], retain_graph=not last, allow_unused=True)
            yield [(at, gradient) for at, gradient in zip(edges, back, strict=True) if gradient is not None]

    def without_graph(self, visit: _Visit) -> tuple[Any, list[Any]]:
        """What a block returns, and what it has written for others."""
        given = visit.call.args, visit.call.kwargs
        handed = mapped(given, lambda tensor: tensor)
        output = self._forwards[visit.index](*handed[0], **handed[1])
        visit.places = list(written(given, handed))
        return output, [item_at(handed, place) for place in visit.places]

    def with_graph(self, visit: _Visit, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients with respect to the inputs of a block, from those of its outputs; those inside are recorded."""
        path, call = self._weights.blocks[visit.index], visit.call
        self._put_last_away()
        ends = self._ends(visit.index)
        self.turned(visit.number)
        self._calls.bring(call)
        leaves: dict[int, Tensor] = {}
        with torch.enable_grad(), ExitStack() as hooks:
            args, kwargs = _on_leaves(visit, leaves)
            record_gradients(hooks, self._model, {path: [call]}, {path: ends})
            with self._unmodified():
                output = self._model.get_submodule(path)(*args, **kwargs)
        made = output, [item_at((args, kwargs), place) for place in visit.places]
        outputs = [tensor for tensor in tensors_in(made) if tensor.is_floating_point()]
        pairs = [(y, g) for y, g in zip(outputs, gradients, strict=True) if g is not None and y.requires_grad]
        back: dict[int, Tensor | None] = {}
        if pairs and leaves:
            tensors, given = zip(*pairs, strict=True)
            found = torch.autograd.grad(tensors, [*leaves.values()], given, allow_unused=True)
            back = dict(zip(leaves, found, strict=True))
            del tensors, given
        # A recorded gradient may be the one that came, which PyTorch refers to until this function returns.
        self._last_returned = call
        self._progress()
        self.returned(visit.number)
        self._count_returned(visit)
        return [back.get(slot) for slot in range(1 + max((s for s in visit.slots if s is not None), default=-1))]

    def _called(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """In place of a block's own forward."""
        if self._inside:
            return self._forwards[index](*args, **kwargs)
        inputs: dict[int, Tensor] = {}
        if torch.is_grad_enabled():
            inputs = {id(tensor): tensor for tensor in tensors_in((args, kwargs)) if tensor.requires_grad}
            if (stranger := next(unknown_in((args, kwargs)), None)) is not None:
                raise RuntimeError(f"a decoder block is handed a graph in a {type(stranger).__name__}")
        order = {key: slot for slot, key in enumerate(inputs)}
        slots = [order.get(id(tensor)) for tensor in tensors_in((args, kwargs))]
        given: tuple[tuple[Any, ...], dict[str, Any]] = detached((args, kwargs))
        visit = _Visit(index, self.number, Call(*given, self.number), slots)
        self._visits[index].append(visit)
        self._latest[self.number] = visit
        if self.number not in self.guests:
            self._calls.add(self._weights.blocks[index], visit.call)
        if not inputs:
            with torch.no_grad():
                made = self.without_graph(visit)
        else:
            parts: list[Any] = []
            outputs = iter(_Block.apply(self, visit, parts, *inputs.values()))  # type: ignore[no-untyped-call]
            made = mapped(parts[0], lambda tensor: next(outputs) if tensor.is_floating_point() else tensor)
        for place, value in zip(visit.places, made[1], strict=True):
            item_at((args, kwargs), place[:-1])[place[-1]] = value
        return made[0]

    @contextmanager
    def _unmodified(self) -> Iterator[None]:
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def _ends(self, index: int) -> list[str]:
        """Paths in a block at which its groups' changes join the residual stream, as one sample shows."""
        path = self._weights.blocks[index]
        groups = [group for group in self._architecture.groups if group.layer == index]
        if any(group.name not in self.branches for group in groups):
            calls = [visit.call for visit in self._visits[index] if visit.number == self._probe]
            for call in calls:
                self._calls.bring(call)
            copies = [Call(*detached((call.args, call.kwargs))) for call in calls]  # blocks may write into mappings
            with torch.no_grad(), self._unmodified():
                self.branches |= branches_of_block(self._model.get_submodule(path), path, groups, copies)
            del copies
            for call in calls:
                self._calls.put_away(call)
        return sorted({self.branches[group.name].path for group in groups})

    def _put_last_away(self) -> None:
        """The call that gradients have come back through last, to which nobody else refers any more."""
        if self._last_returned is not None:
            self._calls.put_away(self._last_returned)
            self._last_returned = None

    def _count_returned(self, visit: _Visit) -> None:
        self._returned[visit.index] += 1
        count = sum(other.number not in self.guests for other in self._visits[visit.index])
        if self._returned[visit.index] % count == 0:
            self.left(visit.index)

    def _turn(self, batch: Batch) -> None:
        self.number = self._numbers[id(batch)]
        self.turned(self.number)

    def _passed(self, batch: Batch, done: int, _of: int) -> None:
        # By now the model refers to what it was given no more.
        number = self._numbers[id(batch)]
        for visit in reversed(self._visits[done - 1]):
            if visit.number == number:
                self._calls.put_away(visit.call)
                break
        if number not in self.guests:
            self._progress()


def _on_leaves(visit: _Visit, leaves: dict[int, Tensor]) -> tuple[Any, Any]:
    """The arguments of a call, those that had a graph on leaves of one of their own, which are filled in."""
    slots, inputs = iter(visit.slots), dict[int, Tensor]()

    def on_leaf(tensor: Tensor) -> Tensor:
        slot = next(slots)
        if slot is None:
            return tensor
        if slot not in inputs:
            leaves[slot] = tensor.detach().requires_grad_()
            inputs[slot] = leaves[slot].clone()  # which, unlike a leaf, may be changed in place
        return inputs[slot]

    args, kwargs = mapped((visit.call.args, visit.call.kwargs), on_leaf)
    return args, kwargs


def _behind(logits: GradientEdge, last: _Visit | None) -> list[GradientEdge] | None:
    """Where the graph behind the last block begins, that made the logits; None where it begins elsewhere too.

    Then what lies behind other blocks may lie before the last one as well, and is not done with yet.
    """
    edges: dict[int, GradientEdge] = {}
    seen, pending = {logits.node}, [logits.node]
    while pending:
        for node, number in pending.pop().next_functions:
            if node is None or node in seen:
                continue
            if getattr(node, "_forward_cls", None) is _Block:
                if node.visit is not last:  # type: ignore[attr-defined]
                    return None
                edges[number] = GradientEdge(node, number)
            elif hasattr(node, "variable"):
                return None
            else:
                seen.add(node)
                pending.append(node)
    return list(edges.values()) or None
