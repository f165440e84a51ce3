"""A card's seal: a checksum over its content, by which an edit shows. No signature: whoever edits can seal again.

It finds accidents and careless edits: a number changed by hand, a line lost in a merge, a card put together from two.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from quantaudit.card.schema import Card
from quantaudit.card.schema.verdict import SealState
from quantaudit.errors import FormatError

IN_WORDS: dict[SealState, str] = {
    "sealed": "the card is as it was written",
    "edited": "the card was edited after it was written: its seal does not fit what it says",
    "unsealed": "the card has no seal, so that an edit would not show",
}
REMEDY = (
    "make the card again with `quantaudit report`; "
    "`quantaudit card --check card.json` shows what differs from its profile"
)


def seal(card: Card) -> Card:
    """The card with a seal over what it says now."""
    return card.model_copy(update={"seal": content_digest(card.model_dump(mode="json"))})


def seal_state(card: Card) -> SealState:
    """Whether a card says what it said when it was sealed."""
    if card.seal is None:
        return "unsealed"
    # Of a card that an older version wrote, only what stood in its file: newer fields have come with their defaults.
    whole, written = (content_digest(card.model_dump(mode="json", exclude_unset=unset)) for unset in (False, True))
    return "sealed" if card.seal in (whole, written) else "edited"


def content_digest(card: dict[str, Any]) -> str:
    """SHA-256 of a card as JSON values without its seal: sorted keys, no white space."""
    content = {key: value for key, value in card.items() if key != "seal"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_sealed(card: Card, where: str | Path) -> None:
    """Raises FormatError unless the card's seal holds."""
    if (state := seal_state(card)) != "sealed":
        raise FormatError(IN_WORDS[state], where=str(where), hint=REMEDY)
