"""What a simulation will take, in forward passes over its evaluation tokens: counted where it can be, else measured."""

from __future__ import annotations

from collections.abc import Sequence

from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.calibrate import ANCHORS

FLOOR = 2.6
"""The rounding floor: the model as it is, and nudged at three depths, each from that block on."""
BACKWARD = 3.0
"""What blocks are called with and what is felt behind them: a forward pass, and a way back that computes it again.
Without gradients it is a forward pass alone. Measured, as all but counts here: docs/prediction.md."""
CLEAN = 1.0
"""A clean run of every block."""
REPLAYED = 1.5
"""All groups replayed under one scheme, each from where it begins."""
SCORED = 1.3
"""The whole model under one recipe."""


def forward_passes(schemes: Sequence[Scheme], *, recipes: int, by_damage: bool, single: int = 0) -> float:
    """Of `simulate`, with the mixture of the report's own schemes. by_damage: prices come without a backward pass.
    single: fused groups simulated alone; where prices rest on some of the same, it takes less.
    """
    weights = {str(scheme.weights) for scheme in schemes if scheme.weights is not None}
    replays = CLEAN + REPLAYED * (len(schemes) + len(weights))
    recorded = 1 + 1 + ANCHORS if by_damage else BACKWARD
    scores = 1 + SCORED * (len(schemes) + 1 + recipes)
    return recorded + replays + FLOOR + single_passes(single) + scores


def single_passes(count: int) -> int:
    """One forward pass for each group that is simulated alone, and one of the model as it is."""
    return 1 + count if count else 0
