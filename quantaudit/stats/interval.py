"""How sure a mean over samples is: its interval by Student's t, and how many samples would place it beside a limit.

A standard error over n samples knows the spread with n − 1 degrees of freedom: few samples make a wide interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ASSURANCE = 0.9
"""Probability with which the suggested number of samples decides."""
MOST_SAMPLES = 1 << 20
"""Samples beyond which none are suggested: a mean that near a limit is not told apart from it by more text."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A range that covers the mean of all text of this kind with the level that it was made for."""

    low: float
    high: float


def student_t(level: float, samples: int) -> float:
    """Standard errors to either side of the mean of so many samples (2 at least), at a two-sided level."""
    from scipy.special import stdtrit  # takes longer than reading a policy

    return float(stdtrit(samples - 1, (1 + level) / 2))


def mean_interval(mean: float, stderr: float, samples: int, level: float, most: float = math.inf) -> Interval:
    """The interval of a mean that lies between 0 and `most`. stderr: over `samples` samples, two at least."""
    reach = student_t(level, samples) * stderr
    return Interval(max(0.0, mean - reach), min(most, mean + reach))


def samples_to_decide(distance: float, stderr: float, samples: int, level: float) -> int:
    """How many samples in all decide, with ASSURANCE, on which side of a limit a mean lies; MOST_SAMPLES at most.

    distance: of the mean from the limit, in its own unit; stderr: standard error of the mean over `samples` samples
    (two at least).

    A mean over N samples at a true distance d from the limit, with spread σ between samples, lies further than
    t(N − 1)·σ/√N from it with probability ASSURANCE where d ≥ (t(N − 1) + z)·σ/√N, z being that quantile of the normal
    distribution. d is taken as it was measured, and for σ, of which few samples say little, the upper end of what they
    leave likely: (n − 1)·s²/σ² is χ² with n − 1 degrees of freedom (Browne 1995, Statistics in Medicine 14:1933). That
    is a factor on N of (1 + z/t)² = 2.7 for the chance that the mean comes out nearer, and of (n − 1)/χ²: 5.1 for four
    samples, 2.2 for ten, 1.6 for 22.
    """
    from scipy.special import chdtri, ndtri

    spread = stderr * math.sqrt(samples * (samples - 1) / float(chdtri(samples - 1, ASSURANCE)))
    z = float(ndtri(ASSURANCE))

    def decides(total: int) -> bool:
        return (student_t(level, total) + z) * spread <= distance * math.sqrt(total)

    low, high = samples, samples + 1
    while not decides(high) and high < MOST_SAMPLES:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return min(high, MOST_SAMPLES)
