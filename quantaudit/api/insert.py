"""`quantaudit.insert`: a card as a section of a model repository's README.md."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.api.arguments import card_of, path_of

if TYPE_CHECKING:
    from quantaudit.card.readme.insert import Insertion
    from quantaudit.card.schema import Card


def insert(
    card: Card | str | Path, readme: str | Path, *, check: bool = False, require_sealed: bool = False
) -> Insertion:
    """Write a card's section into a README.md, between two comments, and the files that it names next to it.

    Nothing outside the section changes by a byte, and a second call changes nothing. check: write nothing, and say in
    `differences` what is not as the card gives it. require_sealed: refuse a card that was edited after it was written,
    or has no seal. Raises FormatError for a card or README that cannot be read, or markers that form no section, and
    OutputError for a place that cannot be written.

    >>> quantaudit.insert("quantaudit-demo/card.json", "README.md").written[0].name
    'README.md'
    >>> quantaudit.insert("quantaudit-demo/card.json", "README.md", check=True).differences
    []
    """
    from quantaudit.card.readme.insert import check_readme, check_section, places, write_section
    from quantaudit.card.schema import dump_card
    from quantaudit.card.seal import check_sealed
    from quantaudit.common.outputs.claims import claimed
    from quantaudit.common.reading.regular_files import CARD_BYTES, read_bytes

    place, loaded = path_of(readme, "readme"), card_of(card)
    source = Path(card) if isinstance(card, str | Path) else None
    if require_sealed:
        check_sealed(loaded, source or "card")
    check_readme(place)
    data = dump_card(loaded).encode("utf-8") if source is None else read_bytes(source, CARD_BYTES)

    # From here on llm-compressor, and with it torch, is needed.
    from quantaudit.card.readme.section import section
    from quantaudit.gate.run import accepts

    given = section(loaded, data, partial(accepts, card=loaded))
    if check:
        return check_section(given, place)
    with claimed(places(place, source), {} if source is None else {"card": source}):
        return write_section(given, place, kept=source)
