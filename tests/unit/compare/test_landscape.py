"""The statements of arXiv 2605.15572, computed from what the package ships, and from cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantaudit.card.published.records import find
from quantaudit.compare import landscape
from quantaudit.compare.sentences import sentences
from quantaudit.compare.subjects.of_card import card_subject
from quantaudit.compare.subjects.read import read_subjects
from tests.stored_statistics import save, stored
from tests.unit.compare.subjects import a_card, comparison


def test_the_residual_stream_holds_22_of_24_global_maxima() -> None:
    share = landscape.residual_share(read_subjects(["published:main"]))
    assert (share.residual, share.of) == (22, 24)
    assert share.elsewhere == ["Qwen3.5-0.8B", "gpt-oss-20b"]
    assert share.ties == ["gpt-oss-20b"]  # its residual stream holds the same magnitude, one step later


def test_mixtures_peak_14_0_to_23_4_times_lower_than_dense_models_of_their_scale() -> None:
    pairs = landscape.mixture_pairs(read_subjects(["published"]))
    assert {(pair.mixture, pair.dense): round(pair.ratio or 0, 1) for pair in pairs} == {
        ("Qwen3-30B-A3B", "Qwen3-32B"): 23.4,
        ("Qwen3.5-35B-A3B", "Qwen3.5-27B"): 14.0,
    }


def test_global_maxima_span_nearly_four_orders_of_magnitude() -> None:
    span = landscape.span(read_subjects(["published:main"]))
    assert span is not None
    assert (span.smallest, span.largest) == ("Qwen3.5-0.8B", "gemma-3-27b-it")
    assert span.ratio == pytest.approx(696320 / 122)
    assert 3.7 < (span.decades or 0) < 4


def test_peaks_grow_along_the_training_stages_of_ling() -> None:
    stages = landscape.trajectory(read_subjects([f"published:Ling-mini-{stage}T" for stage in (5, 10, 15, 20)]))
    assert stages is not None
    assert stages.maxima == [7648, 9024, 10112, 11776]
    assert all(ratio is not None and ratio > 1.1 for ratio in stages.ratios)
    assert landscape.trajectory(read_subjects(["published:Qwen3"])) is None  # of other shapes


def test_maxima_vary_by_3_4_to_10_1_percent_over_1000_samples_and_1_7_to_8_2_over_2000() -> None:
    """What the paper calls their variation is largest minus smallest over the mean; deviations are less than half."""
    names = ("Qwen3.5-0.8B", "gemma-3-4b-it", "Qwen3-30B-A3B", "Qwen3-32B")
    rows = [row for name in names for row in landscape.variations(name)]
    assert {row.repeats for row in rows} == {5}
    spreads = {size: [round(100 * (r.spread or 0), 1) for r in rows if r.samples == size] for size in (1000, 2000)}
    assert (min(spreads[1000]), max(spreads[1000])) == (3.4, 10.1)
    assert (min(spreads[2000]), max(spreads[2000])) == (1.7, 8.2)
    deviations = [round(100 * (row.deviation or 0), 1) for row in rows]
    assert (min(deviations), max(deviations)) == (0.8, 4.4)
    assert landscape.variations("Qwen3-8B") == []


def test_the_residual_stream_emerges_where_the_paper_says() -> None:
    """Growth at the layer of emergence, as the repository lists it for models that it measured once."""
    subjects = {subject.label: subject for subject in read_subjects(["published:main"])}
    for name, layer, ratio in (("Qwen2.5-1.5B", 1, 284.2), ("Qwen3-1.7B", 2, 139.5), ("Ling-mini-5T", 1, 177.3)):
        shape = subjects[name].shape
        assert shape is not None
        assert shape.step is not None
        assert (shape.step.layer, round(shape.step.ratio, 1)) == (layer, ratio)
    shapes = landscape.shapes(list(subjects.values()))
    assert shapes is not None
    assert (shapes.one_sign, shapes.of) == (22, 24)
    gemma = [name for name in subjects if name.startswith(("gemma", "Qwen3.5"))]
    assert not set(gemma) & set(shapes.sudden)
    assert landscape.shapes([subjects["Qwen3-8B"]]) is None


def test_variation_is_said_once_of_a_checkpoint_and_not_of_its_parts(tmp_path: Path) -> None:
    model = find("gemma-3-4b-it")
    assert model is not None
    part = model.model_copy(update={"samples": 1000})
    paths = [str(save(tmp_path / f"{name}_top5_stats.json", stored(row))) for name, row in (("a", part), ("b", part))]
    assert landscape.facts(read_subjects(paths)).variation == []
    whole = str(save(tmp_path / "c_top5_stats.json", stored(model)))
    rows = landscape.facts(read_subjects([whole, "published:gemma-3-4b-it", *paths])).variation
    assert [(row.model, row.samples) for row in rows] == [("gemma-3-4b-it", 1000), ("gemma-3-4b-it", 2000)]
    said = sentences(landscape.facts(read_subjects([whole, *paths])), several=True)
    (text,) = [text for text in said if "parts of 1,000" in text]
    assert "of gemma-3-4b-it varies by 3.4% of its mean" in text


def test_a_mixture_has_no_sibling_of_another_scale_or_lineage() -> None:
    assert landscape.mixture_pairs(read_subjects(["published:Qwen3-30B-A3B", "published:Qwen3-8B"])) == []
    assert landscape.mixture_pairs(read_subjects(["published:Qwen3-30B-A3B", "published:Qwen2.5-32B"])) == []


def test_cards_are_described_as_published_models_are() -> None:
    facts = comparison(a_card(), a_card(), a_card()).landscape
    assert facts.residual is not None
    assert (facts.residual.residual, facts.residual.of) == (3, 3)
    assert facts.trajectory is not None
    assert facts.trajectory.ratios == [1.0, 1.0]
    assert facts.variation == []


def test_ratios_are_of_models_on_one_text() -> None:
    """Of a card next to the checkpoints of the paper, which rest on theirs."""
    published = read_subjects(["published:Qwen3-32B", "published:Qwen3-30B-A3B"])
    facts = landscape.facts([card_subject(a_card(), "card.json"), *published])
    assert facts.residual is not None
    assert facts.residual.of == 3
    assert facts.span is not None
    assert (facts.span.of, facts.span.smallest, facts.span.largest) == (2, "Qwen3-30B-A3B", "Qwen3-32B")
    assert [row.dense for row in facts.mixtures] == ["Qwen3-32B"]
    said = sentences(facts, several=True)
    assert "The largest activation of the 2 on one text, Clxxxx/eval_diverse_dataset (5,000 samples), spans" in said[1]
    alone = landscape.span(published)
    assert alone is not None
    assert alone.text is None

    part = published[1].conditions.model_copy(update={"samples": 1000})
    other_text = published[1].model_copy(update={"conditions": part})
    apart = landscape.facts([published[0], other_text])
    assert (apart.span, apart.mixtures, apart.trajectory) == (None, [], None)


@pytest.mark.parametrize(
    "change", [{"seal": "edited"}, {"contradictions": ["its scores differ"]}, {"doubts": ["the head is random"]}]
)
def test_what_may_not_be_believed_counts_in_no_statement(change: dict[str, object]) -> None:
    stages = read_subjects([f"published:Ling-mini-{stage}T" for stage in (5, 10, 15, 20)])
    stages[1] = stages[1].model_copy(update=change)
    assert len(stages[1].marks) == 1
    facts = landscape.facts(stages)
    assert facts.left_out == 1
    assert facts.residual is not None
    assert facts.residual.of == 3
    assert facts.trajectory is not None
    assert facts.trajectory.maxima == [7648, 10112, 11776]
    assert sentences(facts, several=True)[-1].startswith("One that was edited, contradicts itself")


def test_models_that_peak_alike_do_not_differ() -> None:
    facts = comparison(a_card(), a_card(), a_card()).landscape
    assert facts.span is None
    assert facts.residual is not None
