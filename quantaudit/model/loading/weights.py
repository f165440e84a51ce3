"""Loaded weights that no training leaves: whole numbers, which are codes read as values, and a single value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from quantaudit.provenance import Doubt

_SAMPLE = 4096
"""Values of each matrix that are looked at first, evenly spaced."""
_FEWEST = 64
"""Values below which a matrix says nothing."""


@dataclass(frozen=True, slots=True)
class OddWeights:
    """Matrices of a loaded model that are no weights, by name, in its order. constant: of a single value."""

    codes: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)

    @property
    def doubts(self) -> list[Doubt]:
        """One for each way of being none, naming the first."""
        return [
            *_doubt(self.codes, "are whole numbers, as quantized codes read as weights are"),
            *_doubt(self.constant, "hold a single value throughout, as if never written"),
        ]


def weight_doubts(model: nn.Module) -> list[Doubt]:
    """One doubt for each way in which matrices of a loaded model are no weights, naming the first of them."""
    return odd_weights(model).doubts


def odd_weights(model: nn.Module) -> OddWeights:
    """Matrices that are no weights, as far as they have values."""
    odd = OddWeights()
    for name, weight in _matrices(model):
        if weight.is_meta or weight.numel() < _FEWEST or not weight.is_floating_point():
            continue
        few = _some(weight)
        if bool((few == few[0]).all()):
            if bool((weight == weight.reshape(-1)[0]).all()):
                odd.constant.append(name)
        elif bool((few == few.round()).all()) and float(few.abs().max()) >= 2:
            odd.codes.append(name)
    return odd


def _doubt(names: list[str], what: str) -> list[Doubt]:
    return [Doubt(kind="values", module=names[0], count=len(names), text=f"its weights {what}")] if names else []


def _matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of Linears by module, and of stacked experts one by one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module.weight
        elif not isinstance(module, _ConvNd) and "expert" in name.rpartition(".")[2]:
            for leaf, stack in module.named_parameters(recurse=False):
                if stack.ndim == 3:
                    yield from ((f"{name}.{leaf}[{i}]", stack[i]) for i in range(len(stack)))


def _some(weight: Tensor) -> Tensor:
    """Up to about 4,096 of a matrix's values, evenly spaced, in float32."""
    flat = weight.detach().reshape(-1)
    # A step without factors in common with the number of columns, so that all of them are seen.
    step = max(1, flat.numel() // _SAMPLE) | 1
    return flat[::step].to(torch.float32)
