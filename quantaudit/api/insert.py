"""`quantaudit.insert`: a card as a section of a model repository's README.md."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.api.arguments import card_of, path_of

if TYPE_CHECKING:
    from quantaudit.card.readme.insert import Insertion
    from quantaudit.card.readme.section import Section
    from quantaudit.card.schema import Card


def insert(
    card: Card | str | Path,
    readme: str | Path | None = None,
    *,
    push: str | None = None,
    front_matter: bool = False,
    check: bool = False,
    force: bool = False,
    require_sealed: bool = False,
) -> Insertion:
    """Write a card's section into a README.md, between two comments, and the files that it names next to it.

    Nothing outside the section changes by a byte, and a second call changes nothing. push: a repository on the Hub, as
    `ORG/MODEL`: a pull request puts the section into the README that is there; its address is `pull_request`, None
    where nothing had to change. Without `readme` nothing is written on this machine. front_matter: add the tag
    `quantaudit`, and `base_model_relation` where it is known. check: write nothing, and say in `differences` what is
    not as the card gives it. force: replace files of the folder `quantaudit` that no card came with. require_sealed:
    refuse a card that was edited after it was written, or has no seal. Raises FormatError for a card or README that
    cannot be read, or markers that form no section, UsageError for such a folder, and OutputError for a place that
    cannot be written, the Hub included.

    >>> quantaudit.insert("quantaudit-demo/card.json", "README.md").written[0].name
    'README.md'
    >>> quantaudit.insert("quantaudit-demo/card.json", "README.md", check=True).differences
    []
    """
    from quantaudit.card.readme.insert import check_folder, check_places, check_readme, page_of
    from quantaudit.card.schema import dump_card
    from quantaudit.card.seal import check_sealed
    from quantaudit.common.reading.regular_files import CARD_BYTES, read_bytes

    place = None if readme is None else path_of(readme, "readme")
    check_places(place, push, check=check)
    if push is not None:
        from quantaudit.card.readme.hub import check_push

        check_push(push)
    loaded = card_of(card)
    source = Path(card) if isinstance(card, str | Path) else None
    if require_sealed:
        check_sealed(loaded, source or "card")
    if place is not None:
        check_readme(place)
        if not check and not force:
            check_folder(place)
    data = dump_card(loaded).encode("utf-8") if source is None else read_bytes(source, CARD_BYTES)
    page = None if source is None else page_of(loaded, source)[0]

    # From here on llm-compressor, and with it torch, is needed.
    from quantaudit.card.readme.section import section
    from quantaudit.gate.run import accepts

    given = section(loaded, data, partial(accepts, card=loaded), page=page)
    if place is not None and check:
        from quantaudit.card.readme.insert import check_section

        return check_section(given, place, front_matter=front_matter)
    return _written(given, place, push, source, front_matter)


def _written(
    given: Section, readme: Path | None, push: str | None, source: Path | None, front_matter: bool
) -> Insertion:
    """What came of the section on the Hub, and then on this machine."""
    from quantaudit.card.readme.insert import Insertion, places, write_section
    from quantaudit.common.outputs.claims import claimed

    proposed = Insertion(differences=[], written=[])
    if push is not None:
        from quantaudit.card.readme.hub import push_section

        proposed = push_section(given, push, front_matter=front_matter)
    if readme is None:
        return proposed
    with claimed(places(readme, source), {} if source is None else {"card": source}):
        return replace(
            write_section(given, readme, kept=source, front_matter=front_matter), pull_request=proposed.pull_request
        )
