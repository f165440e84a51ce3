"""`quantaudit.compare`: cards → what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.api.arguments import path_of

if TYPE_CHECKING:
    from quantaudit.card.schema import Card
    from quantaudit.compare.report import Comparison


def compare(
    *cards: Card | str | Path,
    fail_on: str | Sequence[str] = (),
    out: str | Path | None = None,
    require_sealed: bool = False,
) -> Comparison:
    """Compare every card with the first: how they were made, and then what was measured.

    cards: two at least, objects, card.json or its folder, a *_top5_stats.json of the paper's repository, or
    `published:MODEL`. fail_on: limits such as `verdict`, `kl=0.01`, `top1=0.02`, `peak=1.5`, whose answer is in
    `outcome`, `decisions` and `exit_code`. out: folder for compare.html, compare.md and compare.json. Raises
    FormatError for what is no card, UsageError for a limit or a published model that does not exist, OutputError for a
    place that cannot be written.

    >>> comparison = quantaudit.compare("published:Qwen3-32B", "published:Qwen3-30B-A3B", fail_on="peak=1.5")
    >>> round(comparison.landscape.mixtures[0].ratio, 1), comparison.outcome
    (23.4, 'pass')
    """
    from quantaudit.common.outputs.claims import Output, claimed
    from quantaudit.compare.limits import parse_limit
    from quantaudit.compare.pages import PAGES, write_pages
    from quantaudit.compare.run import compare as run
    from quantaudit.compare.subjects.read import file_of, read_subjects

    limits = [parse_limit(text) for text in ([fail_on] if isinstance(fail_on, str) else fail_on)]
    subjects = read_subjects(cards, require_sealed=require_sealed)
    comparison = run(subjects, limits)
    if out is not None:
        place = Output(option="out", path=path_of(out, "out"), folder=True, writes=PAGES)
        paths = {f"card {index}": file_of(card) for index, card in enumerate(cards, 1) if isinstance(card, str | Path)}
        with claimed([place], paths):
            write_pages(comparison, place.path)
    return comparison
