"""Calls of decoder blocks as the model makes them, recorded so that single blocks can be run again."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.forward.batches import batches, forward, last_logit_only
from quantaudit.model.forward.capture import first_tensor


@dataclass(slots=True)
class Call:
    """One call of a decoder block.

    scores: by path inside the block ("" for the block itself), ∂/∂h of what that module put out, one [batch, tokens, …]
    for each draw, in the model's dtype; empty where the pass had no way back, or nothing came back.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    scores: dict[str, list[Tensor]] = field(default_factory=dict)


Calls = dict[str, list[Call]]
"""By block, sample by sample."""


@torch.no_grad()
def record_calls(model: nn.Module, blocks: Sequence[str], samples: Sequence[TokenizedSample]) -> Calls:
    """What every decoder block was called with: hidden states with their masks and positions. Forward passes alone.

    Memory: the inputs of all blocks for all samples.
    """
    calls: Calls = {path: [] for path in blocks}
    with ExitStack() as stack:
        watch_calls(stack, model, calls)
        stack.enter_context(last_logit_only(model))
        for batch in batches(samples, 1, pad=0, device=next(model.parameters()).device):
            forward(model, batch)
    return calls


def watch_calls(stack: ExitStack, model: nn.Module, calls: Calls) -> None:
    """Until the stack closes, calls of the blocks are added to `calls`."""

    def watch(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path].append(Call(_apart(args), _apart(kwargs)))

    for path in calls:
        block = model.get_submodule(path)
        handle = block.register_forward_pre_hook(lambda _m, a, k, path=path: watch(path, a, k), with_kwargs=True)
        stack.callback(handle.remove)


def watch_scores(stack: ExitStack, model: nn.Module, calls: Calls, wanted: Mapping[str, Sequence[str]]) -> None:
    """Until the stack closes, what modules put out tells its gradients to the latest call of their block.

    wanted: by block, paths inside it.
    """

    def watch(block: str, path: str, output: Any) -> None:
        h = first_tensor(output)
        if h.requires_grad:
            scores = calls[block][-1].scores.setdefault(path, [])
            h.register_hook(lambda gradient: scores.append(gradient.detach()))  # type: ignore[no-untyped-call]

    for block, paths in wanted.items():
        for path in paths:
            module = model.get_submodule(block).get_submodule(path)
            handle = module.register_forward_hook(lambda _m, _a, o, block=block, path=path: watch(block, path, o))
            stack.callback(handle.remove)


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
