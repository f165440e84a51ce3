"""A card in at most ten lines, for prompts and logs: what was audited, each scheme's verdict, and where it breaks."""

from __future__ import annotations

from collections.abc import Sequence

from quantaudit.card.schema.verdict import Finding, SchemeVerdict, Verdict, VerdictLimits
from quantaudit.card.text import counted, number, percent, size, visible
from quantaudit.provenance import CorpusInfo, ModelInfo

SCHEMES_SHOWN, GROUPS_SHOWN = 5, 3
_NAME, _TITLE = 70, 40
"""Characters of a model's or a module's name, and of a scheme's title."""


def summary(model: ModelInfo, corpus: CorpusInfo, verdict: Verdict, findings: Sequence[Finding]) -> str:
    """At most nine lines and some 1,600 characters, whatever the card says. Names are made visible and cut."""
    schemes = verdict.schemes
    lines = [
        f"Card of {visible(model.name, _NAME)}: {visible(model.architecture, _TITLE)}, {size(model.parameters)} "
        f"parameters, {corpus.tokens:,} tokens"
    ]
    if not schemes:
        lines.append(f"  {visible(verdict.headline, 2 * _NAME)}")
    width = max((len(visible(row.title, _TITLE)) for row in schemes[:SCHEMES_SHOWN]), default=0)
    lines += [f"  {_verdict_line(row, verdict.limits, width)}" for row in schemes[:SCHEMES_SHOWN]]
    if len(schemes) > SCHEMES_SHOWN:
        lines.append(f"  and {counted(len(schemes) - SCHEMES_SHOWN, 'more scheme')}")
    lines += [f"  {line}" for line in (_worst_line(schemes), _findings_line(findings)) if line]
    return "\n".join(lines)


def _verdict_line(row: SchemeVerdict, limits: VerdictLimits, width: int) -> str:
    scores = f"KL {number(row.kl, limits.kl)} nats per token, top-1 unchanged {percent(row.top1, limits.top1)}"
    return f"{visible(row.title, _TITLE):<{width}}  {row.status}: {scores}"


def _worst_line(schemes: Sequence[SchemeVerdict]) -> str:
    """The groups that the first scheme with any damage breaks at; empty without one."""
    row = next((row for row in schemes if row.worst_groups), None)
    if row is None:
        return ""
    groups = [f"{visible(group.group, _NAME)} {percent(group.share)}" for group in row.worst_groups[:GROUPS_SHOWN]]
    return f"shares of {row.worst_groups[0].share_of} under {visible(row.title, _TITLE)}: {', '.join(groups)}"


def _findings_line(findings: Sequence[Finding]) -> str:
    counts = [
        counted(sum(row.severity == severity for row in findings), noun)
        for severity, noun in (("error", "error"), ("warning", "warning"), ("info", "remark"))
    ]
    return f"findings: {', '.join(counts)}" if findings else ""
