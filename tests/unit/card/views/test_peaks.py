"""The largest activation in words: what is nearly as high, and where the residual stream grows."""

from __future__ import annotations

from dataclasses import replace

from quantaudit.card.views.peaks import shape_of, shape_sentence
from quantaudit.stats.maxima.shape import MaximumShape, Step
from tests.card_factory import make_card

ALONE = MaximumShape(
    top=(-9.0, -8.0, -8.0, -7.5, -7.5),
    sign="negative",
    concentration=1.125,
    decay=0.83,
    equal=False,
    near=("layers.3.output",),
    step=Step(layer=3, ratio=136.0),
)


def test_one_tensor_stands_alone() -> None:
    assert shape_sentence(ALONE) == (
        "One tensor reaches nine tenths of the largest activation outside of Linears’ inputs, layers.3.output; the "
        "five highest elements are all negative, the highest 1.12× their mean. The residual stream grows most at "
        "layer 3, 136×."
    )


def test_a_plateau_of_both_signs_and_a_stream_that_does_not_grow() -> None:
    plateau = replace(ALONE, near=("layers.1.output", "layers.2.output"), sign="mixed", step=Step(layer=1, ratio=0.9))
    text = shape_sentence(plateau)
    assert text.startswith("2 tensors reach nine tenths")
    assert "layers.1.output the first of them; the five highest elements are of both signs" in text
    assert text.endswith("The residual stream grows from no layer to the next.")
    assert shape_sentence(replace(plateau, step=None)).endswith("their mean.")


def test_a_name_that_attacks_is_inert() -> None:
    assert "\x1b" not in shape_sentence(replace(ALONE, near=("\x1b[2J" * 99,)))


def test_a_card_has_it_over_the_papers_tensors() -> None:
    card = make_card(4)
    shape = shape_of(card)
    assert shape is not None
    kinds = {site.name: site.kind for site in card.sites}
    assert not {kinds[name] for name in shape.near} & {"linear_input"}
    assert abs(shape.top[0]) == max(site.amax or 0.0 for site in card.sites if site.kind != "linear_input")
