"""Results of later runs, added to a card: only to one of the same profile, and to nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from quantaudit.card.redact import without_other_domains
from quantaudit.card.render import card_files
from quantaudit.card.schema import Card, dump_card, load_card
from quantaudit.card.seal import seal, seal_state
from quantaudit.common.outputs.file_set import file_set
from quantaudit.errors import FormatError, OutputError
from quantaudit.measure.agreement import corpus_differences, model_differences, run_differences
from quantaudit.measure.profile import Profile

_NOTHING: Mapping[Path, bytes] = {}
_ONE_REPORT = "give the card and the profile of one report (--card, --profile)"


def check_card(card: Card, profile: Profile, path: Path | str, *, numbers: bool = True) -> None:
    """Raises FormatError where a card was not made from a profile, so that results would go to another card.

    numbers: whether what was measured has to agree too, or only model, text and how it was run.
    """
    if card.model.fingerprint != profile.provenance.model.fingerprint:
        raise FormatError(
            f"card is of other weights ({card.model.name}) than the profile ({profile.provenance.model.name})",
            where=str(path),
            hint=_ONE_REPORT,
        )
    if differences := [*_differences(card, profile, numbers=numbers)]:
        raise FormatError(
            f"card was made from another profile: they differ in their {'; '.join(differences)}",
            where=str(path),
            hint=_ONE_REPORT,
        )


def _differences(card: Card, profile: Profile, *, numbers: bool) -> Iterator[str]:
    """What a card and a profile differ in, in words; an older card, without a digest, by all that both record."""
    provenance = profile.provenance
    if card.profile_sha256 == profile.digest:
        return
    yield from model_differences(card.model, provenance.model)
    yield from corpus_differences(card.corpus, provenance.corpus)
    yield from run_differences(card.environment, provenance.environment)
    if card.profile_sha256 is not None and numbers:
        yield f"numbers (profile {card.profile_sha256[:16]}; {profile.digest[:16]})"
    elif numbers and {site.name for site in card.sites} - {site.name for site in profile.sites}:
        yield "sites"


def amend_card(
    path: Path, change: Callable[[Card], Card], *, of: str, outside: Mapping[Path, bytes] = _NOTHING
) -> None:
    """Read a card, change it, and write it to where it was; its pages too, where it has the name of a report's.

    Read now and with its folder locked, not when a long run began: what was added meanwhile is kept. It is
    sealed again if its seal held; an edited card stays recognizable as one, and one without a seal gets none. of: when
    the card was created that the change is about. outside: files in other folders that change with it. Raises as
    `load_card`, and OutputError where the card has been replaced since, or cannot be written.
    """
    path = path.resolve()
    with file_set(path.parent) as files:
        before = load_card(path)
        if before.created != of:
            raise OutputError(
                "was replaced by another report while this ran, and is left alone",
                where=str(path),
                hint="run this again, on the card as it is now",
            )
        card = without_other_domains(change(before))
        if seal_state(before) == "sealed":  # an edited card keeps the seal that does not fit it
            card = seal(card)
        changed = card_files(card) if path.name == "card.json" else {path.name: dump_card(card).encode("utf-8")}
        for name, data in changed.items():
            files.write(name, data)
        for place, data in outside.items():
            files.write_outside(place, data)
