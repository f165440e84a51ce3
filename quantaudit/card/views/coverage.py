"""What was not measured, in few lines."""

from __future__ import annotations

import re
from typing import NamedTuple

from quantaudit.card.judge.findings import NUMBER, common_reason
from quantaudit.card.schema import Card
from quantaudit.provenance import Unmeasured

_LAYER_OR_EXPERT = re.compile(r"(?<=\.)\d+(?=\.|$)")


class UnmeasuredLine(NamedTuple):
    """Modules that were not measured for one reason: their common name (numbers as `*`), how many, and why."""

    modules: str
    many: int
    reason: str


def unmeasured_lines(card: Card) -> list[UnmeasuredLine]:
    """What was not measured; modules and reasons that are alike but for their numbers are one line."""
    kinds: dict[tuple[str, str], list[Unmeasured]] = {}
    for row in card.coverage.unmeasured:
        kinds.setdefault((_LAYER_OR_EXPERT.sub("*", row.module), NUMBER.sub("#", row.reason)), []).append(row)
    return [
        UnmeasuredLine(
            name if len(rows) > 1 else rows[0].module, len(rows), common_reason([row.reason for row in rows])
        )
        for (name, _), rows in kinds.items()
    ]
