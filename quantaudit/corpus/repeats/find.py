"""Which samples are no evidence of their own: what repeats is none again, and what calibrated is none.

Equal texts (`equal`) are one text, and so are near copies (`near`); samples are compared as the token ids that run,
spelled without white space (`spelling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantaudit.corpus.repeats.equal import Repeats, find_repeats
from quantaudit.corpus.repeats.near import find_near
from quantaudit.corpus.repeats.spelling import Sample, Spelling


def repeats_of(samples: Sequence[Sample], tokenizer: Any) -> Repeats:
    """The samples that are no evidence of their own; of equal ones the first is. tokenizer: None compares ids alone."""
    spelling = Spelling.of(samples, tokenizer)
    splits = [sample.split for sample in samples]
    equal = find_repeats(spelling.texts(samples), splits)
    return equal | find_near(spelling.numbers(samples), splits, settled=equal.all)
