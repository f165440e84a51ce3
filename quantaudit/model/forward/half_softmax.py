"""Softmax of 16-bit scores in one pass, where a model asks for float32 and rounds it at once: the same bits, sooner.

Eager attention computes `softmax(scores, dtype=float32).to(dtype)`: three passes over heads × tokens × tokens, two of
them in float32. PyTorch's 16-bit kernel for processors widens, computes and rounds row by row, in the same order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantaudit.model.forward.arithmetic import HALF

LANES = 32
"""Rows are as long as a multiple of this, or padded with −∞, whose exponential adds 0 to a lane: no vector of PyTorch's
kernels holds more numbers. Both kernels do the same until a row ends within a vector. Shorter rows are not ours."""

SMALLEST = 1 << 14
"""Fewer scores are not worth a detour."""

_READ_DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
_SOFTMAX = (nn.functional.softmax, torch.softmax, Tensor.softmax)


def half_softmax(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which the model's attention has its softmax in one pass, where that gives the same bits."""
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype not in HALF or not same_bits(parameter.dtype):
        return nullcontext()
    return HalfSoftmax()


class HalfSoftmax(TorchFunctionMode):
    """Holds a softmax in float32 back until PyTorch is called again: then it is rounded, or computed as asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._promise: _Promise | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What PyTorch calls in place of each of its functions."""
        kwargs = kwargs or {}
        if self._promise is not None and func != _READ_DTYPE:  # `.to(query.dtype)` comes with it
            promise, self._promise = self._promise, None
            if func is Tensor.to and not kwargs and promise.is_rounded(*args):
                return rounded_softmax(promise.scores)
            promise.keep()
        if func in _SOFTMAX and _is_ours(*args, **kwargs):
            self._promise = _Promise(args[0], torch.empty_like(args[0], dtype=torch.float32))
            return self._promise.result
        return func(*args, **kwargs)

    def __exit__(self, *raised: Any) -> None:
        """A promise outlives nothing."""
        if self._promise is not None:
            self._promise.keep()
        super().__exit__(*raised)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Promise:
    """A softmax over the last axis, asked for in float32: its scores, and where it goes."""

    scores: Tensor
    result: Tensor

    def is_rounded(self, tensor: Tensor, *to: Any) -> bool:
        """Whether `tensor.to(*to)` rounds this very result to the dtype of the scores."""
        return tensor is self.result and to == (self.scores.dtype,)

    def keep(self) -> None:
        """Compute it after all."""
        self.result.copy_(nn.functional.softmax(self.scores, -1, dtype=torch.float32))


def _is_ours(scores: Any = None, dim: Any = None, *rest: Any, dtype: Any = None, **_named: Any) -> bool:
    """Whether a softmax is over the last axis of many 16-bit scores in main memory, in float32, without a gradient."""
    return (
        dtype is torch.float32
        and not rest
        and isinstance(scores, Tensor)
        and scores.dtype in HALF
        and scores.device.type == "cpu"
        and scores.numel() >= SMALLEST
        and scores.shape[-1] >= LANES
        and dim in (-1, scores.ndim - 1)
        and scores.is_contiguous()
        and not (torch.is_grad_enabled() and scores.requires_grad)
    )


def rounded_softmax(scores: Tensor) -> Tensor:
    """`softmax(scores, -1, dtype=float32).to(scores.dtype)`, bit for bit, of 16-bit scores [..., n], n ≥ LANES."""
    width = scores.shape[-1]
    if width % LANES == 0:
        return torch.softmax(scores, -1)
    padded = nn.functional.pad(scores, (0, -width % LANES), value=-torch.inf)
    return torch.softmax(padded, -1)[..., :width].contiguous()


@cache
def same_bits(dtype: torch.dtype) -> bool:
    """Whether this processor's kernels do give the same bits: tried on some rows, once for a process and dtype."""
    generator = torch.Generator().manual_seed(0)
    for width in (LANES, 8 * LANES - 3):
        scores = (8 * torch.randn((64, width), generator=generator)).to(dtype)
        expected = torch.softmax(scores, -1, dtype=torch.float32).to(dtype)
        if not torch.equal(rounded_softmax(scores), expected):
            return False
    return True
