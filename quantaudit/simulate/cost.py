"""What a simulation will take, in forward passes over its evaluation tokens: counted where it can be, else measured."""

from __future__ import annotations

from collections.abc import Sequence

from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.calibrate import ANCHORS

FLOOR = 4
"""The rounding floor: the model as it is, and nudged at three depths."""
RECORDED = 1.6
"""What blocks are called with, and a clean run of every block. Measured, as all but counts here: docs/prediction.md."""
REPLAYED = 1.5
"""All groups replayed under one scheme, each from where it begins."""
SCORED = 1.3
"""The whole model under one recipe."""
BACKWARD, PRICED = 2.0, 1.3
"""A forward pass and its way back, and the products of gradients under one scheme: five took 8.6 passes together."""


def forward_passes(schemes: Sequence[Scheme], *, recipes: int, by_damage: bool, single: int = 0) -> float:
    """Of `simulate`, with the mixture of the report's own schemes. by_damage: prices come without a backward pass.
    single: fused groups simulated alone; where prices rest on some of the same, it takes less.
    """
    weights = {str(scheme.weights) for scheme in schemes if scheme.weights is not None}
    damage = RECORDED + REPLAYED * (len(schemes) + len(weights))
    prices = 1 + ANCHORS if by_damage else BACKWARD + PRICED * len(schemes)
    scores = 1 + SCORED * (len(schemes) + 1 + recipes)
    return damage + FLOOR + single_passes(single) + prices + scores


def single_passes(count: int) -> int:
    """One forward pass for each group that is simulated alone, and one of the model as it is."""
    return 1 + count if count else 0
