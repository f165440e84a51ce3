"""Hypothesis strategies for 16-bit tensors and the statistics made of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantaudit.stats.site import SiteStatistics
from tests.builders import Sample, accumulate, from_patterns, make_samples

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

# Few distinct patterns make ties; the ones named are ±0, a subnormal, ±1, ±Inf and two NaNs of both encodings.
_PATTERNS = st.one_of(
    st.integers(0, 0xFFFF),
    st.sampled_from(
        [0x0000, 0x8000, 0x0001, 0x3F80, 0xBF80, 0x3C00, 0xBC00, 0x7F80, 0xFF80, 0x7C00, 0xFC00, 0x7FC0, 0x7E00]
    ),
)


@st.composite
def sample_lists(draw: Callable[..., object], channels: int | None = None, count: int | None = None) -> list[Sample]:
    """Up to five samples of one site, of any bit patterns."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    width = channels or draw(st.integers(1, 6))
    tensors = [
        from_patterns(draw(arrays(np.uint16, (draw(st.integers(1, 8)), width), elements=_PATTERNS)), dtype)
        for _ in range(count or draw(st.integers(1, 5)))
    ]
    return make_samples(tensors)


@st.composite
def statistics_triples(draw: Callable[..., object]) -> tuple[SiteStatistics, SiteStatistics, SiteStatistics]:
    """Statistics of three shards of one site: no sample is in two of them."""
    samples: list[Sample] = draw(sample_lists(count=5))
    owner: list[int] = draw(st.lists(st.integers(0, 2), min_size=5, max_size=5))
    shards = [[s for s, o in zip(samples, owner, strict=True) if o == k] for k in range(3)]
    if not all(shards):  # an accumulator that saw nothing does not know its encoding
        shards = [samples[:1], samples[1:3], samples[3:]]
    a, b, c = (accumulate(shard) for shard in shards)
    return a, b, c
