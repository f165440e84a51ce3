"""QA518: whether the card is as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantaudit.card.seal import IN_WORDS, REMEDY
from quantaudit.common.findings import Hit, rule

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence


@rule(
    "QA518",
    "The card was edited after it was written",
    severity="warning",
    why="A number that was changed by hand rests on no measurement, and whoever reads the gate's answer cannot see it.",
    remedy=f"{REMEDY[0].upper()}{REMEDY[1:]}; `gate --require-sealed` refuses such a card.",
)
def edited(evidence: Evidence) -> Iterator[Hit]:
    """The card's seal, a checksum over its content, does not fit what it says."""
    if evidence.seal == "edited":
        yield Hit(message=IN_WORDS["edited"])
