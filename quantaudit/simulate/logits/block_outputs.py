"""What decoder blocks return, and modules take, while a model runs; and how far it is from the unquantized model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.model.forward.capture import first_tensor
from quantaudit.model.forward.hooks import watch_inputs, watch_outputs


@dataclass(frozen=True, slots=True)
class Hidden:
    """One block's output [1, tokens, hidden] in the model's dtype, and ‖h_t‖², float32 [1, tokens]."""

    output: Tensor
    norm: Tensor

    @classmethod
    def of(cls, h: Tensor) -> Hidden:
        """A copy: the model may go on in place."""
        wide = h.float()
        norm = torch.linalg.vecdot(wide, wide).clamp_min_(torch.finfo(torch.float32).tiny)
        return cls(output=h.clone(), norm=norm)

    def drift(self, h: Tensor) -> Tensor:
        """Σ over tokens of ‖Δh_t‖² / ‖h_t‖², as `block_damage` takes it: a float64 scalar."""
        delta = h.to(torch.float32, copy=True).sub_(self.output)
        total: Tensor = (torch.linalg.vecdot(delta, delta) / self.norm).sum(dtype=torch.float64)
        return total


@contextmanager
def drifts_of(model: nn.Module, blocks: Sequence[str], clean: Mapping[int, Hidden]) -> Iterator[dict[int, Tensor]]:
    """Drift by index of the block, filled in as the model runs."""
    drifts: dict[int, Tensor] = {}
    with block_outputs(model, blocks, lambda index, h: drifts.update({index: clean[index].drift(h)})):
        yield drifts


@contextmanager
def module_inputs(model: nn.Module, taps: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Within the context, each tap takes the first argument of its module."""
    with ExitStack() as stack:
        for path, take in taps.items():
            hook = lambda _module, args, _kwargs, take=take: take(args[0])  # noqa: E731
            stack.enter_context(watch_inputs(model.get_submodule(path), hook))
        yield


@contextmanager
def block_outputs(model: nn.Module, blocks: Sequence[str], take: Any) -> Iterator[None]:
    """Within the context, `take` is called with each block's index and output."""
    with ExitStack() as stack:
        for index, path in enumerate(blocks):
            hook = lambda _module, _args, _kwargs, h, index=index: take(index, first_tensor(h))  # noqa: E731
            stack.enter_context(watch_outputs(model.get_submodule(path), hook))
        yield
