"""Where a peak stands among the published ones."""

from __future__ import annotations

import pytest

from quantaudit.card.build import landscape, peak_summary
from quantaudit.card.sections.landscape import PUBLISHED, SOURCE, compared_site, place
from quantaudit.card.text import number
from quantaudit.card.views.landscape import landscape_lines
from tests.card_factory import make_card


def test_the_table_is_the_published_one() -> None:
    assert len(PUBLISHED) == 27
    assert len({row.model for row in PUBLISHED}) == 27
    assert sum(row.peak for row in PUBLISHED) == 1006650
    assert sum(abs(row.peak) for row in PUBLISHED) == 1490042
    by_model = {row.model: (row.peak, row.site) for row in PUBLISHED}
    assert by_model["gemma-3-27b-it"] == (696320, "layer 46 hidden")
    assert by_model["gpt-oss-20b"] == (-145408, "layer 23 mlp_output")
    assert by_model["Qwen3.5-0.8B"] == (122, "final norm")


@pytest.mark.parametrize(
    ("peak", "rank"),
    [(1e6, 1), (696320.0, 1), (-696320.0, 1), (600000.0, 2), (15168.0, 10), (-15168.0, 10), (22144.0, 7), (0.0, 28)],
)
def test_rank_counts_larger_magnitudes(peak: float, rank: int) -> None:
    assert place(peak).rank == rank


def test_reading_names_both_neighbors() -> None:
    landscape = place(15168.0)
    assert landscape.source == SOURCE
    assert landscape.published == list(PUBLISHED)
    assert landscape.reading == (
        "A peak of 15,168 is larger than 18 of the 27 published peaks: "
        "it stands between Qwen3-1.7B (14,208) and Qwen3-8B (17,664)."
    )


def test_reading_at_the_ends() -> None:
    assert "larger than all 27 published peaks: the largest of them is" in place(1e6).reading
    assert place(1e6).reading.endswith("the largest of them is gemma-3-27b-it (696,320).")
    assert place(1.0).reading == (
        "A peak of 1.00 is smaller than all 27 published peaks: the smallest of them is Qwen3.5-0.8B (122)."
    )
    smallest = min(abs(row.peak) for row in PUBLISHED)
    assert place(smallest).reading.endswith(
        "is as large as the smallest of the 27 published peaks, Qwen3.5-0.8B (122)."
    )


def test_no_peak_has_no_rank() -> None:
    landscape = place(None)
    assert landscape.rank is None
    assert "cannot be placed" in landscape.reading


def test_inputs_of_linears_take_no_part_as_in_the_published_peaks() -> None:
    card = make_card()
    inside = next(site for site in card.sites if site.kind == "linear_input")
    peak = inside.peaks[0].model_copy(update={"value": 9e6})
    sites = [site.model_copy(update={"amax": 9e6, "peaks": [peak]}) if site is inside else site for site in card.sites]
    highest = compared_site(card.sites)
    assert highest is not None
    assert highest.kind == "residual"
    assert compared_site(sites) == highest
    assert landscape(card.sites, peak_summary(card.sites)).reading.startswith(f"A peak of {number(highest.amax)} is ")
    found = landscape(sites, peak_summary(sites))
    assert found.reading.startswith(f"A peak, Linears’ inputs aside, of {number(highest.amax)} is ")
    (here,) = [line for line in landscape_lines(card.model_copy(update={"sites": sites})) if line.here]
    assert (here.site, abs(here.peak)) == (highest.name, highest.amax)
