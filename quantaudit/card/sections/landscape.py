"""The published peaks that a card is placed among."""

from __future__ import annotations

from quantaudit.card.schema import Landscape, PublishedPeak
from quantaudit.card.text import number

SOURCE = "arXiv 2605.15572, reference repository, 5,000 samples, bf16"

_TABLE: tuple[tuple[str, float, str], ...] = (
    ("Qwen2.5-1.5B", -7968, "layer 5 hidden"),
    ("Qwen2.5-1.5B-Instruct", -7968, "layer 5 hidden"),
    ("Qwen2.5-7B", -13248, "layer 13 hidden"),
    ("Qwen2.5-7B-Instruct", -13312, "layer 13 hidden"),
    ("Qwen2.5-32B", 30848, "layer 63 hidden"),
    ("Qwen2.5-32B-Instruct", 22144, "layer 42 hidden"),
    ("Qwen2.5-VL-3B", -3984, "layer 30 hidden"),
    ("Qwen2.5-VL-7B", -8256, "layer 13 hidden"),
    ("Qwen2.5-VL-32B", 22144, "layer 44 hidden"),
    ("Qwen3-1.7B", 14208, "layer 25 hidden"),
    ("Qwen3-8B", 17664, "layer 16 hidden"),
    ("Qwen3-32B", 35328, "layer 44 hidden"),
    ("Qwen3-30B-A3B", 1512, "layer 3 hidden"),
    ("Qwen3.5-0.8B", 122, "final norm"),
    ("Qwen3.5-9B", 956, "layer 31 hidden"),
    ("Qwen3.5-27B", 1848, "layer 63 hidden"),
    ("Qwen3.5-35B-A3B", 132, "layer 39 hidden"),
    ("gemma-2b", -2992, "layer 11 hidden"),
    ("gemma-2-9b", 1664, "layer 41 hidden"),
    ("gemma-2-27b", 157696, "layer 38 hidden"),
    ("gemma-3-4b-it", 245760, "layer 29 hidden"),
    ("gemma-3-27b-it", 696320, "layer 46 hidden"),
    ("gpt-oss-20b", -145408, "layer 23 mlp_output"),
    ("Ling-mini-5T", -7648, "layer 14 hidden"),
    ("Ling-mini-10T", -9024, "layer 10 hidden"),
    ("Ling-mini-15T", -10112, "layer 19 hidden"),
    ("Ling-mini-20T", -11776, "layer 19 hidden"),
)

PUBLISHED: tuple[PublishedPeak, ...] = tuple(
    PublishedPeak(model=model, peak=float(peak), site=site) for model, peak, site in _TABLE
)
"""Signed value of each model's largest activation at its site, ordered by family and size."""


def place(peak: float | None) -> Landscape:
    """Rank of |peak| among the published magnitudes (1 = larger than all; ties share the better rank), and a reading.

    `peak` is signed or not, in the units of the activation; None (nothing finite was measured) has no rank.
    """
    if peak is None:
        reading = "No finite peak was measured, so this model cannot be placed among published ones."
        return Landscape(source=SOURCE, published=list(PUBLISHED), rank=None, reading=reading)
    magnitude = abs(peak)
    larger = sum(abs(row.peak) > magnitude for row in PUBLISHED)
    return Landscape(source=SOURCE, published=list(PUBLISHED), rank=larger + 1, reading=_reading(magnitude))


def _reading(magnitude: float) -> str:
    """One sentence: how many published peaks are smaller, and the nearest neighbors on both sides."""
    smaller = [row for row in PUBLISHED if abs(row.peak) < magnitude]
    not_smaller = [row for row in PUBLISHED if abs(row.peak) >= magnitude]
    below = max(smaller, key=lambda row: abs(row.peak), default=None)
    above = min(not_smaller, key=lambda row: abs(row.peak), default=None)
    head = f"A peak of {number(magnitude)} is larger than {len(smaller)} of the {len(PUBLISHED)} published peaks"
    if below and above:
        return f"{head}: it stands between {_named(below)} and {_named(above)}."
    nearest, which = (below, "largest") if below else (above, "smallest")
    return f"{head}: the {which} of them is {_named(nearest)}." if nearest else f"{head}."


def _named(row: PublishedPeak) -> str:
    return f"{row.model} ({number(abs(row.peak))})"
