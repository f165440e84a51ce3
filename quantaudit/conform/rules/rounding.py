"""How far a quantized weight may be from the model's, by what rounding to its codes takes: alone, and with the others
of its scheme.

What rounding takes is known of each weight from its codes and scales: a step²/12 for each element. Rounding to the
nearest comes to that, within a tenth; GPTQ, which moves the weights that follow to make up for it, to 1.8 times as
much. So the limit follows the format, the bits and the groups, and how far the largest weights are from the rest. Of
one weight, sixteen projections tell the difference to a third or so, and the steps that they are kept in add to it; of
many together they tell it to a few percent. The rms is kept exactly, and rounding changes it by the square of what it
takes: a factor on all weights shows from a few percent on at four bits, and from half a percent at eight.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from quantaudit.card.schema import Finding
from quantaudit.conform.rules.catalogue import finding
from quantaudit.model.weight_sketch import STEP

COMPENSATION = 2.6
"""Largest ratio of a weight's difference to what rounding takes. Seen: 1.8 of GPTQ on little text, 1.1 of others."""
RESOLUTION = STEP / math.sqrt(6)
"""What keeping projections in steps adds to a difference: the rounding of two of them."""
SPREAD = 1.0
"""Of the estimate from one weight's sixteen projections, relative to it: once in millions it is twice what it is of."""
FACTOR = 0.01
"""Difference of rms that scales of bfloat16 explain, of one weight."""
COMMON = 0.005
"""And in the mean over a scheme, where it is of either sign."""

READERS = {"up_proj": "down_proj", "v_proj": "o_proj", "w3": "w2"}
"""Linear → the one that reads its output channel by channel, between which AWQ moves factors."""
PAIRED = 0.3
"""How much of one's change the other has at least, where factors were moved between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Of one weight: its estimated difference from the model's, the logarithm of the ratio of their rms, and what
    rounding is expected to take; difference and rounding over the weight's norm.
    """

    difference: float
    log_ratio: float
    rounding: float


def difference_limit(changes: Sequence[Change]) -> float:
    """Largest difference, in the root mean square over the weights."""
    share = fmean((COMPENSATION * change.rounding) ** 2 for change in changes)
    return (1 + SPREAD / math.sqrt(len(changes))) * math.sqrt(share + RESOLUTION**2)


def ratio_limit(changes: Sequence[Change]) -> float:
    """Largest logarithm of the ratio of rms, in the mean over the weights: errors add squares, or take them away."""
    share = fmean((COMPENSATION * change.rounding) ** 2 for change in changes)
    return FACTOR + 0.6 * share if len(changes) == 1 else COMMON + 0.5 * share


def moved_factors(changes: Mapping[str, Change], other: Collection[str]) -> set[str]:
    """Modules of which AWQ divided rows, and those that read them, whose columns it multiplied by the same factors.

    Nothing else shows it where the norms stay as they are. other: modules that rounding does not explain. Of each two,
    one at least is among them.
    """
    found: set[str] = set()
    for name, change in changes.items():
        parent, _, leaf = name.rpartition(".")
        reader = f"{parent}.{READERS.get(leaf)}"
        if reader in changes and not {name, reader}.isdisjoint(other) and _inverse(change, changes[reader]):
            found |= {name, reader}
    return found


def _inverse(rows: Change, columns: Change) -> bool:
    """Whether two weights may have been divided and multiplied by the same factors.

    What one gains in size the other loses, or both gain: factors of the variance σ² of their logarithms change the
    logarithms of both rms by 2σ² together, and the square of each difference by σ² or more.
    """
    gains = rows.log_ratio, columns.log_ratio
    if gains[0] * gains[1] < 0 and min(map(abs, gains)) >= PAIRED * max(map(abs, gains)):
        return True
    beyond = [change.difference**2 - change.rounding**2 for change in (rows, columns)]
    both = min(beyond) >= PAIRED * max(beyond) > 0
    return both and -FACTOR <= sum(gains) <= 1.5 * sum(beyond) + FACTOR


def together(subject: str, members: Sequence[tuple[str, Change]]) -> Finding | None:
    """Of a scheme's weights by module: an error where all of them differ by more than rounding explains."""
    changes = [change for _, change in members]
    if len(changes) < 2:
        return None
    ratio, most = fmean(change.log_ratio for change in changes), ratio_limit(changes)
    away, limit = math.sqrt(fmean(change.difference**2 for change in changes)), difference_limit(changes)
    text = f"the {len(changes):,} weights of the {subject}, such as that of `{members[0][0]}`,"
    if abs(ratio) > most:
        text = f"{text} are {math.exp(ratio):.3g} times the card's by their rms: rounding explains {most:.1%}"
        return finding("QA627", None, text, value=math.exp(ratio), threshold=math.exp(math.copysign(most, ratio)))
    if away > limit:
        text = f"{text} differ by {away:.2g} of their norm from the card's: rounding explains {limit:.2g}"
        return finding("QA627", None, text, value=away, threshold=limit)
    return None
