"""How a card's comparison with its profile reads in a terminal."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from quantaudit.card.check import CardCheck
from quantaudit.card.text import visible

_WIDTH = 300
"""Characters of a value."""


def show(result: CardCheck, console: Console) -> None:
    """Every field that differs with both values, then how much was compared, and what could not be."""
    for row in result.differences:
        values = f"{_value(row.card)} on the card, {_value(row.profile)} by the profile"
        console.print(Text(f"{visible(row.field)}: {values}"), soft_wrap=True)
    count = len(result.differences)
    outcome = "equal" if not count else "1 field differs" if count == 1 else f"{count:,} fields differ"
    text = f"{outcome}: {result.compared:,} values computed again under policy {visible(result.policy)}"
    console.print(Text(text, style="bold red" if count else "bold green"), soft_wrap=True)
    if result.not_recomputed:
        rest = f"not computed again without the model: {', '.join(result.not_recomputed)}"
        console.print(Text(rest), soft_wrap=True)


def _value(value: Any) -> str:
    return "nothing" if value is None else visible(json.dumps(value, ensure_ascii=False), _WIDTH)
