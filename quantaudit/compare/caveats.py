"""What has to be said before any number of a comparison: how the two sides were made differently, and what that leaves
undecided. QA7xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from quantaudit.card.seal import IN_WORDS, REMEDY
from quantaudit.card.text import counted
from quantaudit.common.findings import declare, find_rule
from quantaudit.common.outcome import GateSeverity
from quantaudit.compare.report import Caveat
from quantaudit.compare.subjects.subject import Conditions, Subject
from quantaudit.compare.subjects.texts import cut_short, text_differences

Part = Literal["peaks", "scores", "verdicts"]
ALL: tuple[Part, ...] = ("peaks", "scores", "verdicts")
_AGAIN = "Make both cards again on the same"

declare(
    "QA701",
    "The text differs",
    severity="inconclusive",
    why="A peak grows with the amount and the kind of text, and a KL is a mean over the text that it was taken on: a "
    "difference may be that of the text alone.",
    remedy=f"{_AGAIN} corpus: `quantaudit report MODEL --corpus my-text.jsonl`, with the same --samples, --seed and "
    "--max-length.",
)
declare(
    "QA702",
    "The same text in other tokens",
    severity="info",
    why="Models with tokenizers of their own read the same text as other tokens; nats per token are then nats per "
    "another piece of text.",
    remedy="Nothing; keep it in mind where families are compared by their KL.",
)
declare(
    "QA703",
    "Computed in another way",
    severity="warning",
    why="The dtype, how its products are computed, the attention and the device change roundings, and with them the "
    "least KL that can be seen; a wider dtype also changes what overflows.",
    remedy=f"{_AGAIN} kind of machine, with the same --dtype, --arithmetic and --attention.",
)
declare(
    "QA704",
    "Other versions",
    severity="info",
    why="A library may compute a model, or quantize, in another way from one version to the next.",
    remedy=f"{_AGAIN} versions where a small difference matters.",
)
declare(
    "QA705",
    "Judged by another policy",
    severity="inconclusive",
    why="A verdict is a policy's. Under other limits the same numbers have another one.",
    remedy="Make both cards again under one policy (--policy); their KL and top-1 can be compared as they are.",
)
declare(
    "QA706",
    "A scheme of one name that is two",
    severity="inconclusive",
    why="Scores of one scheme can be compared where it quantizes in the same way on both sides.",
    remedy="Simulate both with the same version of quantaudit and the same --scheme.",
)
declare(
    "QA707",
    "Scores of other evaluation tokens",
    severity="info",
    why="Scores of the same corpus may rest on other samples of it. The interval of a change then takes both sides as "
    "independent, which covers that.",
    remedy="Give the same --evaluation-tokens for the narrowest interval.",
)
declare(
    "QA708",
    "The card was edited, or has no seal",
    severity="warning",
    why="A number that was changed by hand rests on no measurement, and without a seal a change would not show.",
    remedy=f"{REMEDY[0].upper()}{REMEDY[1:]}; `compare --require-sealed` refuses such a card.",
)
declare(
    "QA709",
    "The card contradicts itself",
    severity="inconclusive",
    why="Scores of one run agree with each other and with the verdicts. Where they do not, one of them was changed.",
    remedy="Make the card again, and do not edit it.",
)
declare(
    "QA710",
    "Not measured on one side",
    severity="inconclusive",
    why="What one side lacks did not improve and did not get worse: it is not known.",
    remedy="Measure and simulate both sides alike: `quantaudit report` with the same options.",
)
declare(
    "QA711",
    "The card itself cannot be trusted",
    severity="inconclusive",
    why="A model that was loaded wrongly, or text that is no evidence, makes every number of its card meaningless.",
    remedy="Mend what the card's finding names, and make it again.",
)


def own_caveats(index: int, subject: Subject) -> Iterator[Caveat]:
    """What one subject has to say for itself."""
    if subject.seal in ("edited", "unsealed"):
        severity: GateSeverity = "warning" if subject.seal == "edited" else "info"
        yield caveat("QA708", index, IN_WORDS[subject.seal], severity=severity)
    if subject.contradictions:
        yield caveat("QA709", index, some(subject.contradictions), undecided=ALL)
    if subject.doubts:
        yield caveat("QA711", index, some(subject.doubts), undecided=ALL)


def caveats(index: int, baseline: Subject, other: Subject) -> Iterator[Caveat]:
    """What differs in how two subjects were made. index: of the other one."""
    yield from _text(index, baseline.conditions, other.conditions)
    yield from _computed(index, baseline.conditions, other.conditions)
    yield from _judged(index, baseline.conditions, other.conditions)
    for score in baseline.schemes:
        theirs = other.scheme(score.scheme)
        if theirs is not None and theirs.definition != score.definition:
            message = f"{score.title} ({score.scheme}) quantizes in another way"
            yield caveat("QA706", index, message, undecided=(f"scheme {score.scheme}",))
    yield from _missing(index, baseline, other)


def _text(index: int, ours: Conditions, theirs: Conditions) -> Iterator[Caveat]:
    differences = list(text_differences(ours, theirs))
    if differences:
        yield from (caveat("QA701", index, message, undecided=ALL) for message in differences)
        return
    if ours.tokens != theirs.tokens:
        counts = f"{ours.tokens or 0:,} against {counted(theirs.tokens or 0, 'token')}"
        if cut_short(ours, theirs):
            yield caveat("QA702", index, f"{counts} of it, with samples cut short", severity="warning")
        else:
            yield caveat("QA702", index, f"{counts} of the same text")
    if ours.evaluation_tokens and theirs.evaluation_tokens:
        sizes = [
            f"{counted(row.evaluation_tokens or 0, 'token')} of {counted(row.evaluation_samples or 0, 'sample')}"
            for row in (ours, theirs)
        ]
        if sizes[0] != sizes[1]:
            yield caveat("QA707", index, f"{sizes[0]} against {sizes[1]}")
        elif ours.evaluation_sha256 != theirs.evaluation_sha256:
            yield caveat("QA707", index, f"{sizes[0]}, and other ones")


def _computed(index: int, ours: Conditions, theirs: Conditions) -> Iterator[Caveat]:
    names = {"dtype": "dtype", "arithmetic": "products", "attention": "attention", "device": "device"}
    differing = [
        f"{name} {getattr(ours, field)} against {getattr(theirs, field)}"
        for field, name in names.items()
        if None not in (getattr(ours, field), getattr(theirs, field)) and getattr(ours, field) != getattr(theirs, field)
    ]
    if differing:
        yield caveat("QA703", index, "; ".join(differing))
    packages = [*ours.versions, *(name for name in theirs.versions if name not in ours.versions)]
    versions = [
        f"{name} {ours.versions.get(name, 'unknown')} against {theirs.versions.get(name, 'unknown')}"
        for name in packages
        if ours.versions.get(name) != theirs.versions.get(name)
    ]
    if versions and ours.versions and theirs.versions:
        yield caveat("QA704", index, "; ".join(versions))


def _judged(index: int, ours: Conditions, theirs: Conditions) -> Iterator[Caveat]:
    if ours.policy is None or theirs.policy is None:
        return
    digests = ours.policy_digest, theirs.policy_digest
    if ours.policy != theirs.policy or (None not in digests and digests[0] != digests[1]):
        shown = [f"{row.policy} ({(row.policy_digest or 'digest unknown')[:12]})" for row in (ours, theirs)]
        yield caveat("QA705", index, " against ".join(shown), undecided=("verdicts",))


def _missing(index: int, baseline: Subject, other: Subject) -> Iterator[Caveat]:
    parts = {f"peaks of {kind.replace('_', ' ')}": kind for kind in (*baseline.peaks, *other.peaks)}
    titles = {row.title: row.scheme for row in (*baseline.schemes, *other.schemes)}
    for side, there in ((baseline, other), (other, baseline)):
        lacking = [name for name, kind in parts.items() if kind in there.peaks and kind not in side.peaks]
        if there.schemes and not side.schemes:
            lacking.append("simulation of any scheme")
        else:
            lacking += [name for name, scheme in titles.items() if there.scheme(scheme) and not side.scheme(scheme)]
        if lacking:
            yield caveat("QA710", index, f"{side.label} has no {', no '.join(lacking)}")
    if None not in (baseline.unmeasured, other.unmeasured) and baseline.unmeasured != other.unmeasured:
        counts = f"{baseline.unmeasured:,} Linears were not measured against {other.unmeasured:,}"
        yield caveat("QA710", index, counts)


def some(clauses: list[str]) -> str:
    """The first three of them as one."""
    return "; ".join(clauses[:3]) + (f" (and {len(clauses) - 3} more)" if len(clauses) > 3 else "")


def caveat(
    code: str,
    index: int,
    message: str,
    *,
    severity: GateSeverity | None = None,
    undecided: tuple[str, ...] = (),
) -> Caveat:
    """What a code says, of one subject. message: of this case; undecided: what it leaves so."""
    rule = find_rule(code)
    return Caveat(
        code=code,
        title=rule.title,
        severity=severity or rule.severity,
        subjects=[index],
        message=message,
        undecided=list(undecided),
        reason=rule.why,
        remedy=rule.remedy,
    )
