"""This model's largest activation among published ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantaudit.card.schema import Card
from quantaudit.card.sections.landscape import compared_site


@dataclass(frozen=True, slots=True, kw_only=True)
class LandscapeLine:
    """One model of the landscape. `position`: 0 … 1 on a logarithmic scale over all lines. `here`: the audited one."""

    model: str
    peak: float
    site: str
    position: float
    here: bool


def landscape_lines(card: Card) -> list[LandscapeLine]:
    """Published peaks and this model's own, largest magnitude first."""
    entries = [(row.model, row.peak, row.site, False) for row in card.landscape.published]
    own = compared_site(card.sites)
    if own is not None and own.amax:
        signed = own.peaks[0].value if own.peaks and own.peaks[0].value is not None else own.amax
        entries.append((card.model.name, signed, own.name, True))
    entries = [entry for entry in entries if entry[1]]
    positions = _log_positions([abs(peak) for _, peak, _, _ in entries])
    lines = [
        LandscapeLine(model=model, peak=peak, site=site, position=position, here=here)
        for (model, peak, site, here), position in zip(entries, positions, strict=True)
    ]
    return sorted(lines, key=lambda line: (-abs(line.peak), not line.here, line.model))


def _log_positions(magnitudes: list[float]) -> list[float]:
    """Positions 0 … 1 of positive magnitudes on a logarithmic scale from the power of ten below to the largest."""
    if not magnitudes:
        return []
    low = math.floor(math.log10(min(magnitudes)))
    span = math.log10(max(magnitudes)) - low
    return [(math.log10(magnitude) - low) / span if span > 0 else 1.0 for magnitude in magnitudes]
