"""What a model's largest activation is like: one element that stands alone, or a plateau that many tensors reach."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

TOP = 5
"""Elements that its height is compared with."""
NEAR = 0.9
"""Share of the maximum from which a tensor counts as reaching it: the hot layers of arXiv 2605.15572's repository."""
JUMP = 10.0
"""Growth from one layer to the next from which the largest activations emerge there, rather than by degrees."""

Sign = Literal["positive", "negative", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Highest:
    """The highest elements of one tensor. values: by falling magnitude, signed, TOP of them where there are as many."""

    tensor: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The largest growth of the residual stream's maximum from a layer to the next, and the layer that it leads to."""

    layer: int
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaximumShape:
    """The maximum over all tensors, next to what is nearly as high.

    top: the TOP highest elements of all tensors by falling magnitude, signed; one that is carried from layer to layer
    counts in each. concentration: the first magnitude over their mean. decay: the last magnitude over the first.
    near: tensors that reach NEAR of the maximum. step: None where fewer than two layers are known.
    """

    top: tuple[float, ...]
    sign: Sign
    concentration: float
    decay: float
    equal: bool
    near: tuple[str, ...]
    step: Step | None


def maximum_shape(highest: Iterable[Highest], residual_by_layer: Sequence[float | None]) -> MaximumShape | None:
    """The shape of a maximum; None where nothing but zeros was measured.

    highest: of every tensor with finite values. residual_by_layer: largest magnitudes of the residual stream.
    """
    tensors = [row for row in highest if row.values]
    values = sorted((value for row in tensors for value in row.values[:TOP]), key=abs, reverse=True)[:TOP]
    if not values or not values[0]:
        return None
    magnitudes = [abs(value) for value in values]
    return MaximumShape(
        top=tuple(values),
        sign=_sign(values),
        concentration=magnitudes[0] / statistics.fmean(magnitudes),
        decay=magnitudes[-1] / magnitudes[0],
        equal=magnitudes[-1] == magnitudes[0],
        near=tuple(row.tensor for row in tensors if abs(row.values[0]) >= NEAR * magnitudes[0]),
        step=largest_step(residual_by_layer),
    )


def _sign(values: Sequence[float]) -> Sign:
    if all(value > 0 for value in values):
        return "positive"
    return "negative" if all(value < 0 for value in values) else "mixed"


def largest_step(by_layer: Sequence[float | None]) -> Step | None:
    """Where a sequence of magnitudes grows most from one layer to the next; the first of several."""
    steps = [
        Step(layer=layer, ratio=after / before)
        for layer, (before, after) in enumerate(itertools.pairwise(by_layer), 1)
        if before and after is not None
    ]
    return max(steps, key=lambda step: step.ratio, default=None)
