"""Whether subjects rest on one text. A peak grows with the amount and the kind of it, so that others say little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantaudit.card.text import counted
from quantaudit.compare.subjects.subject import Conditions, Subject


def text_differences(ours: Conditions, theirs: Conditions) -> Iterator[str]:
    """In which ways two texts are not one, in words; nothing for one text, in other tokens too."""
    digests = ours.corpus_sha256, theirs.corpus_sha256
    # Names say little where the content is known: that of a redacted corpus is gone.
    keys = [(row.corpus, row.samples) for row in (ours, theirs)]
    if digests[0] != digests[1] or (digests[0] is None and keys[0] != keys[1]):
        named = f", by their digests {_short(ours)} and {_short(theirs)}" if ours.corpus == theirs.corpus else ""
        yield f"{text_of(ours)} against {text_of(theirs)}{named}"
        return
    if ours.max_length != theirs.max_length and cut_short(ours, theirs):
        yield f"samples are cut at {ours.max_length:,} against {counted(theirs.max_length, 'token')}"
    if ours.special_tokens != theirs.special_tokens:
        yield f"special tokens and chat template: {ours.special_tokens} against {theirs.special_tokens}"


def cut_short(ours: Conditions, theirs: Conditions) -> bool:
    """Whether samples of either were cut, or it is not known of the first."""
    return bool(ours.truncated or theirs.truncated) or ours.truncated is None


def text_of(row: Conditions) -> str:
    """A text by its name and size."""
    tokens = "" if row.tokens is None else f", {counted(row.tokens, 'token')}"
    return f"{row.corpus} ({counted(row.samples, 'sample')}{tokens})"


def same_text(one: Subject, other: Subject) -> bool:
    """Whether nothing is known in which their texts differ."""
    return next(text_differences(one.conditions, other.conditions), None) is None


def comparable(one: Subject, other: Subject) -> bool:
    """Whether a ratio of their magnitudes says something: both rest on one text, and may be believed."""
    return not (one.marks or other.marks) and same_text(one, other)


def labels_of_texts(groups: Sequence[Sequence[Subject]]) -> list[str]:
    """A label for the text of each group, with all that tells it from another one of its name and size."""
    firsts = [group[0].conditions for group in groups]
    labels = [text_of(row) for row in firsts]
    return [
        label if labels.count(label) == 1 else f"{label}, {_distinctly(row)}"
        for label, row in zip(labels, firsts, strict=True)
    ]


def by_text(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Subjects of one text together, those of the most common text first."""
    groups: list[list[Subject]] = []
    for subject in subjects:
        group = next((group for group in groups if same_text(group[0], subject)), None)
        if group is None:
            groups.append([subject])
        else:
            group.append(subject)
    return sorted(groups, key=len, reverse=True)


def _distinctly(row: Conditions) -> str:
    special = "unknown" if row.special_tokens is None else row.special_tokens
    return f"SHA-256 {_short(row)}, {row.max_length:,} tokens of a sample at most, special tokens: {special}"


def _short(row: Conditions) -> str:
    return (row.corpus_sha256 or "unknown")[:12]
