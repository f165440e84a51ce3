"""`quantaudit card`: whether a card says what its profile gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit card --check quantaudit-demo/card.json"


def run(
    check: Annotated[Path, typer.Option(metavar="CARD", help="card.json that is computed again, and compared.")],
    profile: Annotated[
        Path | None,
        typer.Option(metavar="PROFILE", help="The profile of its report; profile.safetensors next to the card."),
    ] = None,
    policy: options.Policy = "default",
) -> None:
    """Compute a card again from its profile, without the model: exit 0 equal, 1 fields differ, 2 bad input."""
    from quantaudit.card.schema import load_card
    from quantaudit.cli import console
    from quantaudit.measure.profile import load_profile
    from quantaudit.policy import load_policy

    rules, card = load_policy(policy), load_card(check)
    measured = load_profile(profile or check.parent / "profile.safetensors")

    # From here on torch is needed.
    from quantaudit.card.check import check as compare
    from quantaudit.cli.output.card import show

    result = compare(card, measured, rules, where=str(check))
    console.say_seal(result.seal, check)
    show(result, console.out)
    raise typer.Exit(result.exit_code)
