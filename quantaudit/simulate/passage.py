"""One pass over the evaluation tokens, and what replays need of it: calls of decoder blocks, gradients behind them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.capture import first_tensor
from quantaudit.model.drive import batches, forward, one_logit
from quantaudit.progress import Advance, no_advance
from quantaudit.simulate.forwards import checkpointed
from quantaudit.simulate.gradients import backward, differentiable
from quantaudit.simulate.price import LinearPrices, PriceList


@dataclass(slots=True)
class Call:
    """One call of a decoder block, as the model made it.

    scores: ∂/∂h at the block's output, one [batch, tokens, hidden] for each draw, in the model's dtype; none where the
    pass had no way back, or nothing came back to this block.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    scores: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """calls: by block, sample by sample; replays forget them one block after the other. prices: of groups that are
    priced at their Linears. draws: ways back for each sample.
    """

    calls: dict[str, list[Call]]
    prices: PriceList = field(default_factory=dict)
    draws: int = 0


@torch.no_grad()
def record_calls(model: nn.Module, blocks: Sequence[str], samples: Sequence[TokenizedSample]) -> Passage:
    """What every decoder block was called with: hidden states with their masks and positions. Forward passes alone.

    Memory: the inputs of all blocks for all samples.
    """
    calls: dict[str, list[Call]] = {path: [] for path in blocks}
    with ExitStack() as stack:
        _watch(stack, model, calls)
        stack.enter_context(one_logit(model))
        for batch in batches(samples, 1, pad=0, device=next(model.parameters()).device):
            forward(model, batch)
    return Passage(calls=calls)


def record_scores(
    model: nn.Module,
    blocks: Sequence[str],
    samples: Sequence[TokenizedSample],
    linears: LinearPrices | None = None,
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Advance = no_advance,
) -> Passage:
    """The same, with what the logits feel at the output of every block; one backward pass for each draw.

    Scores are computed in float32 and rounded once to the model's dtype; in float16 very small gradients underflow.
    Memory: inputs and gradients of all blocks for all samples, and one block's graph for one sample. The model is left
    as it was. `progress` is called after each sample. Raises RuntimeError where an operation has no derivative, or
    memory runs out.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    calls: dict[str, list[Call]] = {path: [] for path in blocks}
    with differentiable(model), checkpointed(model, blocks):
        for batch in batches(samples, 1, pad=0, device=device):
            with ExitStack() as stack:
                _watch(stack, model, calls)
                if linears is not None:
                    linears.watch(stack)
                backward(model, batch, stack.pop_all(), draws, generator)
            if linears is not None:
                linears.settle(full=False)
            progress()
    if linears is None:
        return Passage(calls=calls, draws=draws)
    linears.settle()
    tokens = sum(len(sample.ids) for sample in samples)
    return Passage(calls=calls, prices=linears.prices(tokens * draws), draws=draws)


def _watch(stack: ExitStack, model: nn.Module, calls: dict[str, list[Call]]) -> None:
    """Until the stack closes, record calls of the blocks, and have their outputs tell the gradients."""
    begun: dict[str, list[Call]] = defaultdict(list)

    def before(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(_apart(args), _apart(kwargs))
        calls[path].append(call)
        begun[path].append(call)

    def after(path: str, output: Any) -> None:
        call, h = begun[path].pop(), first_tensor(output)
        if h.requires_grad:
            h.register_hook(lambda gradient: call.scores.append(gradient.detach()))  # type: ignore[no-untyped-call]

    for path in calls:
        block = model.get_submodule(path)
        handle = block.register_forward_pre_hook(lambda _m, a, k, path=path: before(path, a, k), with_kwargs=True)
        stack.callback(handle.remove)
        stack.callback(block.register_forward_hook(lambda _m, _a, output, path=path: after(path, output)).remove)


def _apart(value: Any) -> Any:
    """The same without a graph, in containers of its own: states that layers share are replayed as they were then."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (tuple, list):
        return type(value)(map(_apart, value))
    if not isinstance(value, MutableMapping):
        return value
    found = copy(value)
    for key, own in value.items():
        found[key] = _apart(own)
    return found
