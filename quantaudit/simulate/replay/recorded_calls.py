"""Calls of decoder blocks as the model makes them, recorded so that single blocks can be run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.common.ranks.team import deal
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.forward.batches import Batch, batches, forward, last_logit_only
from quantaudit.model.forward.capture import first_tensor
from quantaudit.model.forward.hooks import watch_inputs, watch_outputs
from quantaudit.simulate.replay.nested import detached


@dataclass(slots=True)
class Call:
    """One call of a decoder block.

    output_gradients: by path inside the block ("" for the block itself), ∂/∂h of that module's output h, one
    [batch, tokens, …] for each draw, in the model's dtype; empty without a backward pass, or where no gradient came.
    number: of the sample, among those of all ranks.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    number: int = 0
    output_gradients: dict[str, list[Tensor]] = field(default_factory=dict)


Calls = dict[str, list[Call]]
"""By block, sample by sample."""


def dealt_batches(samples: Sequence[TokenizedSample], device: torch.device) -> list[tuple[int, Batch]]:
    """This rank's samples, each in a batch of its own, with its number: its place among all, the longest first."""
    return deal(list(enumerate(batches(samples, device=device))), lambda numbered: numbered[1].tokens)


@torch.no_grad()
def record_calls(model: nn.Module, blocks: Sequence[str], samples: Sequence[TokenizedSample]) -> Calls:
    """Arguments of every decoder block's calls: hidden states with their masks and positions. Forward passes alone.

    Of this rank's samples. Memory: the inputs of all blocks for all of them.
    """
    calls: Calls = {path: [] for path in blocks}
    with last_logit_only(model):
        for number, batch in dealt_batches(samples, next(model.parameters()).device):
            with ExitStack() as stack:
                watch_calls(stack, model, calls, number)
                forward(model, batch)
    return calls


def watch_calls(stack: ExitStack, model: nn.Module, calls: Calls, number: int) -> None:
    """Until the stack closes, calls of the blocks are added to `calls`. number: of the sample that runs."""

    def watch(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path].append(Call(detached(args), detached(kwargs), number))

    for path in calls:
        block = model.get_submodule(path)
        hook = lambda _module, args, kwargs, path=path: watch(path, args, kwargs)  # noqa: E731
        stack.enter_context(watch_inputs(block, hook))


def record_gradients(stack: ExitStack, model: nn.Module, calls: Calls, inside: Mapping[str, Sequence[str]]) -> None:
    """Until the stack closes, gradients of modules' outputs are added to the latest call of their block.

    inside: by block, paths of modules inside it.
    """

    def watch(block: str, path: str, output: Any) -> None:
        h = first_tensor(output)
        if h.requires_grad:
            gradients = calls[block][-1].output_gradients.setdefault(path, [])
            h.register_hook(lambda gradient: gradients.append(gradient.detach()))  # type: ignore[no-untyped-call]

    for block, paths in inside.items():
        for path in paths:
            module = model.get_submodule(block).get_submodule(path)
            hook = lambda _m, _a, _k, output, block=block, path=path: watch(block, path, output)  # noqa: E731
            stack.enter_context(watch_outputs(module, hook))
