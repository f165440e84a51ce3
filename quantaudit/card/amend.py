"""Results of later runs, added to a card: only to one of the same weights, and to nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantaudit.card.redact import without_other_domains
from quantaudit.card.render import write_card
from quantaudit.card.schema import Card, dump_card, load_card
from quantaudit.common.files import write_text
from quantaudit.errors import FormatError
from quantaudit.measure.profile import Profile


def check_card(card: Card, profile: Profile, path: Path) -> None:
    """Raises FormatError where a card is of other weights than a profile, so that results would go to another model."""
    if card.model.fingerprint != profile.provenance.model.fingerprint:
        raise FormatError(
            f"card is of other weights ({card.model.name}) than the profile ({profile.provenance.model.name})",
            where=str(path),
            hint="give the card and the profile of one report",
        )


def amend_card(path: Path, change: Callable[[Card], Card]) -> None:
    """Read a card, change it, and write it to where it was; its pages too, where it has the name of a report's.

    Read now, not when a long run began: what was added meanwhile is kept. Raises as `load_card` and `write_card`.
    """
    card = without_other_domains(change(load_card(path)))
    if path.name == "card.json":
        write_card(card, path.parent)
    else:
        write_text(path, dump_card(card))
