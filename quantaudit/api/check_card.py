"""`quantaudit.check_card`: a card against the profile that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.api.arguments import card_of, profile_of
from quantaudit.errors import UsageError

if TYPE_CHECKING:
    from quantaudit.card.check import CardCheck
    from quantaudit.card.schema import Card
    from quantaudit.measure.profile import Profile


def check_card(
    card: Card | str | Path, profile: Profile | str | Path | None = None, *, policy: str | Path = "default"
) -> CardCheck:
    """Compute a card again from its profile, without the model, and list every field that differs.

    profile: profile.safetensors next to the card where None. policy: the one that the card was judged under. Raises
    FormatError for files that cannot be read, or are not of one model and text.

    >>> quantaudit.check_card("quantaudit-demo/card.json").differences
    []
    """
    from quantaudit.policy import load_policy

    if profile is None:
        if not isinstance(card, str | Path):
            raise UsageError("a card in memory needs its profile", where="profile", hint="give a path, or a Profile")
        profile = Path(card).parent / "profile.safetensors"
    rules, read, measured = load_policy(str(policy)), card_of(card), profile_of(profile)
    from quantaudit.card.check import check

    return check(read, measured, rules, where=str(card) if isinstance(card, str | Path) else "card")
