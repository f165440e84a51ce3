"""A card in at most ten lines, for prompts and logs: what was audited, each scheme's verdict, and where it breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantaudit.card.text import counted, number, percent, size, visible

if TYPE_CHECKING:
    from quantaudit.card.schema import Card
    from quantaudit.card.schema.verdict import SchemeVerdict

SCHEMES_SHOWN, GROUPS_SHOWN = 5, 3
_NAME, _TITLE = 70, 40
"""Characters of a model's or a module's name, and of a scheme's title."""


def summary(card: Card) -> str:
    """At most nine lines and some 1,600 characters, whatever the card says. Names are made visible and cut."""
    model, schemes = card.model, card.verdict.schemes
    lines = [
        f"Card of {visible(model.name, _NAME)}: {visible(model.architecture, _TITLE)}, {size(model.parameters)} "
        f"parameters, {card.corpus.tokens:,} tokens"
    ]
    if not schemes:
        lines.append(f"  {visible(card.verdict.headline, 2 * _NAME)}")
    width = max((len(visible(row.title, _TITLE)) for row in schemes[:SCHEMES_SHOWN]), default=0)
    lines += [f"  {_verdict_line(row, card, width)}" for row in schemes[:SCHEMES_SHOWN]]
    if len(schemes) > SCHEMES_SHOWN:
        lines.append(f"  and {counted(len(schemes) - SCHEMES_SHOWN, 'more scheme')}")
    lines += [f"  {line}" for line in (_worst_line(schemes), _findings_line(card)) if line]
    return "\n".join(lines)


def _verdict_line(row: SchemeVerdict, card: Card, width: int) -> str:
    limits = card.verdict.limits
    scores = f"KL {number(row.kl, limits.kl)} nats per token, top-1 unchanged {percent(row.top1, limits.top1)}"
    return f"{visible(row.title, _TITLE):<{width}}  {row.status}: {scores}"


def _worst_line(schemes: list[SchemeVerdict]) -> str:
    """The groups that the first scheme with any damage breaks at; empty without one."""
    row = next((row for row in schemes if row.worst_groups), None)
    if row is None:
        return ""
    groups = [f"{visible(group.group, _NAME)} {percent(group.share)}" for group in row.worst_groups[:GROUPS_SHOWN]]
    return f"shares of the damage under {visible(row.title, _TITLE)}: {', '.join(groups)}"


def _findings_line(card: Card) -> str:
    counts = [
        counted(sum(row.severity == severity for row in card.findings), noun)
        for severity, noun in (("error", "error"), ("warning", "warning"), ("info", "remark"))
    ]
    return f"findings: {', '.join(counts)}" if card.findings else ""
