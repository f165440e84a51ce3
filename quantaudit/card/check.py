"""A card against its profile: everything that can be computed again without the model, and every field that differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from quantaudit.card.amend import check_card
from quantaudit.card.build import build_card
from quantaudit.card.judge.verdict import decide
from quantaudit.card.redact import redact
from quantaudit.card.schema import Card, Verdict
from quantaudit.card.schema.verdict import SealState
from quantaudit.card.seal import seal_state
from quantaudit.errors import FormatError, UsageError
from quantaudit.measure.profile import Profile
from quantaudit.policy import Policy
from quantaudit.provenance import Row
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.tensors import error_rows, scale_rows

CLOSE = 1e-9
"""Relative difference up to which two numbers are one that was computed twice."""
_SIMULATED = ("evaluation", "schemes", "groups", "recipes", "granularity")
_ADDED = ("advice", "verification")
NOT_RECOMPUTED = (*(f"simulation.{name}" for name in _SIMULATED), *_ADDED)
"""What only the model itself, or another run, could give again."""


class FieldDifference(Row):
    """One field of a card that its profile does not give. card, profile: both values; null where there is none."""

    field: str
    card: Any
    profile: Any


class CardCheck(Row):
    """What computing a card again from its profile has shown."""

    policy: str
    seal: SealState
    compared: int = Field(description="values that were computed again")
    differences: list[FieldDifference]
    not_recomputed: list[str] = Field(description="parts of this card that only the model could give again")

    @property
    def exit_code(self) -> int:
        """0 where nothing differs, 1 where something does."""
        return 1 if self.differences else 0


def check(card: Card, profile: Profile, policy: Policy, *, where: str) -> CardCheck:
    """Build the card again from its profile and its own simulation, and compare.

    policy: the one that the card was judged under. where: names the card. Raises FormatError where the profile is of
    another model, text or run than the card, UsageError for another policy.
    """
    if card.verdict.policy != policy.name:
        raise UsageError(
            f"card was judged under the policy {card.verdict.policy}, not {policy.name}",
            where=where,
            hint="give that policy with --policy",
        )
    check_card(card, profile, where, numbers=False)
    again, state = _again(card, profile, policy, where), seal_state(card)
    # What an older version did not write differs in nothing; what somebody took out does.
    written = _content(card, unset=state == "edited")
    pairs = list(_pairs("", written, _content(card), _content(again)))
    return CardCheck(
        policy=policy.name,
        seal=state,
        compared=len(pairs),
        differences=[FieldDifference(field=path, card=a, profile=b) for path, a, b in pairs if not _same(a, b)],
        not_recomputed=[path for path in NOT_RECOMPUTED if _holds(card, path)],
    )


def _again(card: Card, profile: Profile, policy: Policy, where: str) -> Card:
    """The card as its profile gives it."""
    if card.corpus.redacted:
        profile = redact(profile)
    elif profile.provenance.corpus.redacted:
        raise FormatError(
            "profile is redacted, and the card is not", where=where, hint="give the profile that the card was made from"
        )
    simulation = card.simulation and card.simulation.model_copy(
        update={"sites": error_rows(profile), "profile_sha256": card.simulation.profile_sha256 and profile.digest}
    )
    scales = scale_rows(profile) if card.scales or simulation else []
    again = build_card(profile, scales, simulation, policy, timings=card.environment.timings)
    if simulation is None:
        return again
    return again.model_copy(update={"verdict": _verdict(card, again, simulation, policy)})


def _verdict(card: Card, again: Card, simulation: Simulation, policy: Policy) -> Verdict:
    """The verdict as it was when the card was written: rows that advice has added since took no part in it."""
    rows = list(simulation.recipes)
    verdict = again.verdict
    while rows and verdict != card.verdict and rows[-1].title.startswith("recipe "):
        rows.pop()
        earlier = simulation.model_copy(update={"recipes": rows})
        verdict = decide(again.sites, again.coverage, earlier, again.findings, policy)
    return verdict if verdict == card.verdict else again.verdict


def _content(card: Card, *, unset: bool = True) -> dict[str, Any]:
    """What is compared: all but what differs between equal audits, and what is not computed again.

    unset: whether fields that its file does not have count, with their defaults.
    """
    left_out = dict.fromkeys(("quantaudit_version", "created", "seal", *_ADDED), True)
    return card.model_dump(mode="json", exclude={**left_out, "simulation": set(_SIMULATED)}, exclude_unset=not unset)


def _pairs(path: str, written: Any, card: Any, again: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every value of two records by its path, such as `sites[3].amax`; a part that one of them lacks is one value.

    written: the first record without the fields that are not compared.
    """
    if isinstance(card, Mapping) and isinstance(again, Mapping):
        for key in dict.fromkeys([*card, *again]):
            if key in written or key not in card:
                below = f"{path}.{key}" if path else key
                yield from _pairs(below, written.get(key), card.get(key), again.get(key))
    elif isinstance(card, list) and isinstance(again, list):
        for index in range(max(len(card), len(again))):
            kept, one, other = (part[index] if index < len(part) else None for part in (written, card, again))
            yield from _pairs(f"{path}[{_label(one, other, index)}]", kept, one, other)
    else:
        yield path, card, again


def _label(a: Any, b: Any, index: int) -> str:
    """How a row is known: by the name that both have, else by its place."""
    for key in ("name", "site", "module", "scheme", "code"):
        if isinstance(a, dict) and isinstance(b, dict) and isinstance(a.get(key), str) and a[key] == b.get(key):
            return f"{index}: {a[key]}"
    return str(index)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(a, int | float) and isinstance(b, int | float) and math.isclose(a, b, rel_tol=CLOSE)
    return bool(a == b)


def _holds(card: Card, path: str) -> bool:
    value: Any = card
    for name in path.split("."):
        value = value and getattr(value, name)
    return bool(value)
