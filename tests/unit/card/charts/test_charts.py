"""Charts as data: deterministic, safe on logarithmic axes, and readable on both papers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import altair as alt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.card.charts import distribution, layer_map, peak_against_damage, peaks_by_expert, peaks_by_layer, theme
from quantaudit.card.charts.draw import CHARTS, specification, specifications
from quantaudit.card.charts.theme import AnyChart
from quantaudit.card.schema import Card
from quantaudit.card.text import percent
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.peaks import projection_of
from quantaudit.simulate.records import Simulation
from tests.card_factory import DYNAMIC, LAYERS, STATIC, make_card, make_site
from tests.large_card import large_card

WHITE, NIGHT = "#ffffff", "#0f1216"


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card()


def _specs(card: Card) -> dict[str, Any]:
    return specifications(CardView(card))


def _walk(value: Any) -> Iterator[Any]:
    yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _walk(child)


def _with_simulation(card: Card, **changes: Any) -> Card:
    assert card.simulation is not None
    return card.model_copy(update={"simulation": card.simulation.model_copy(update=changes)})


def test_every_chart_is_drawn(card: Card) -> None:
    expected = ["peaks_by_layer", "peak_against_damage", "layer_map", "zeroed_by_layer"]
    assert list(_specs(card)) == [*expected, "error_by_granularity", "frontier", "advice_curve"]


def test_every_chart_is_valid(card: Card) -> None:
    view = CardView(card)
    charts = [chart for draw in CHARTS.values() if (chart := draw(view)) is not None]
    assert len(charts) > 6
    for chart in [*charts, distribution.chart(view), peaks_by_expert.chart(CardView(large_card(2)))]:
        check_valid(chart)


def check_valid(chart: AnyChart | None) -> None:
    """By Vega-Lite's schema, which drawing does not look at."""
    assert chart is not None
    with alt.theme.enable("none"):
        whole = json.loads(chart.to_json(validate=True))
    del whole["$schema"]
    assert json.loads(json.dumps(specification(chart))) == whole


def test_equal_cards_give_equal_bytes_from_call_to_call(card: Card) -> None:
    first, second = json.dumps(_specs(card)), json.dumps(_specs(make_card()))
    assert first == second


def test_a_theme_of_the_process_changes_nothing(card: Card) -> None:
    before = _specs(card)
    with alt.theme.enable("dark"):
        assert _specs(card) == before


def test_no_address_is_left_in_a_specification(card: Card) -> None:
    assert "http" not in json.dumps(_specs(card))


def test_inputs_are_split_by_projection(card: Card) -> None:
    series = {row["series"] for row in peaks_by_layer.data(CardView(card))}
    expected = {"down_proj input", "o_proj input", "qkv_proj input", "gate_up_proj input"}
    assert series == expected | {"residual", "attention output", "mlp output", "gate"}
    assert len(peaks_by_layer.data(CardView(card))) == LAYERS * 8


@pytest.mark.parametrize(
    ("site", "projection"),
    [
        ("layers.7.mlp.down_proj.input", "down_proj"),
        ("layers.7.mlp.experts.down_proj.input", "experts.down_proj"),
        ("layers.7.proj.input", "proj"),
        ("lm_head.input", "lm_head"),
        ("model.layers.12.self_attn.qkv_proj.input", "qkv_proj"),
    ],
)
def test_projection_of_an_input_without_a_simulation(site: str, projection: str) -> None:
    assert projection_of(site, {}) == projection


def test_null_and_zero_never_reach_a_logarithmic_axis(card: Card) -> None:
    odd = [
        make_site("layers.0.output", "residual", 0, None),
        make_site("layers.1.output", "residual", 1, 0.0),
        make_site("layers.2.output", "residual", 2, 5.0),
    ]
    assert [row["layer"] for row in peaks_by_layer.data(CardView(card.model_copy(update={"sites": odd})))] == [2]
    assert CardView(card.model_copy(update={"sites": odd})).undrawn == ["layers.0.output", "layers.1.output"]


def test_groups_that_cost_nothing_are_left_out(card: Card) -> None:
    assert card.simulation is not None
    none = [{"damage": value, "price": value} for value in (0.0, None)]
    groups = [row.model_copy(update=none[bool(row.layer)]) for row in card.simulation.groups]
    dull = _with_simulation(card, groups=groups)
    assert peak_against_damage.data(CardView(dull)) == []
    assert layer_map.data(CardView(dull)) == []
    assert list(_specs(dull)) == ["peaks_by_layer", "zeroed_by_layer", "advice_curve"]


@pytest.mark.parametrize("measure", ["price", "damage"])
def test_the_layer_map_goes_by_price_where_there_are_prices_and_gives_a_zero_the_lowest_shade(
    card: Card, measure: str
) -> None:
    assert card.simulation is not None
    unpriced = {} if measure == "price" else {"price": None}
    groups = [
        row.model_copy(update=unpriced | ({measure: 0.0} if row.layer == 5 else {})) for row in card.simulation.groups
    ]
    view = CardView(_with_simulation(card, groups=groups))
    heat = layer_map.data(view)
    zero = [row for row in heat if row["layer"] == 5]
    assert {row["cost"] for row in zero} == {"0 (0% of all)"}
    assert {row["shade"] for row in zero} == {min(row["shade"] for row in heat)}
    costs = {line.group: getattr(line, measure) for line in view.groups}
    assert {row["group"]: row["shade"] for row in heat if row["layer"] != 5} == {
        group: cost for group, cost in costs.items() if cost
    }
    first = max(heat, key=lambda row: row["shade"])
    assert first["cost"].endswith(f"({percent(first['shade'] / sum(filter(None, costs.values())))} of all)")
    title = _specs(view.card)["layer_map"]["encoding"]["color"]["title"]
    assert title == {"price": "KL, nats (estimate)", "damage": "block damage"}[measure]


def test_an_empty_card_has_no_charts(card: Card) -> None:
    assert _specs(card.model_copy(update={"sites": [], "simulation": None, "advice": []})) == {}


def test_a_model_of_one_layer_is_drawn(card: Card) -> None:
    sites = [site for site in card.sites if site.layer in (0, None)]
    groups = [row for row in _simulation(card).groups if row.layer == 0]
    small = _with_simulation(card, groups=groups).model_copy(update={"sites": sites})
    assert len(_specs(small)) == 7


@pytest.mark.parametrize(("largest", "drawn"), [(4000.0, False), (9000.0, False), (40000.0, True), (7e5, True)])
def test_the_end_of_fp16_is_drawn_only_where_it_matters(card: Card, largest: float, drawn: bool) -> None:
    sites = [make_site("layers.0.output", "residual", 0, 9.0), make_site("layers.1.output", "residual", 1, largest)]
    spec = _specs(card.model_copy(update={"sites": sites}))["peaks_by_layer"]
    assert ("FP16 ends at 65,504" in json.dumps(spec)) == drawn


def test_both_schemes_are_told_apart_by_shape(card: Card) -> None:
    points = peak_against_damage.data(CardView(card))
    assert {row["scheme"] for row in points} == {"INT8 static per tensor", "INT8 dynamic per token"}
    assert "lm_head" not in {row["group"] for row in points}
    assert _shapes_of("scheme", _specs(card)["peak_against_damage"]) == ["circle", "square"]


def _shapes_of(field: str, spec: dict[str, Any]) -> list[str]:
    shapes = [node["shape"] for node in _walk(spec) if isinstance(node, dict) and isinstance(node.get("shape"), dict)]
    return next(shape["scale"]["range"] for shape in shapes if shape["field"] == field)


def test_series_have_different_shapes_and_colors(card: Card) -> None:
    spec = _specs(card)["peaks_by_layer"]
    assert len(set(_shapes_of("series", spec))) == 8
    colors = next(node["color"]["scale"]["range"] for node in _walk(spec) if isinstance(node, dict) and "color" in node)
    assert len(set(colors)) == 8


@pytest.mark.parametrize("paper", [WHITE, NIGHT])
@pytest.mark.parametrize("color", [*theme.PALETTE.values(), *theme.SPARE_COLORS, theme.NEUTRAL])
def test_palette_keeps_its_contrast_on_both_papers(color: str, paper: str) -> None:
    lighter, darker = sorted((_luminance(color), _luminance(paper)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3.0


def _luminance(color: str) -> float:
    """Relative luminance by WCAG 2.2."""
    channels = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_label_stands_on_the_height_of_another() -> None:
    """Of points on one height the one that hurts most is named, so that labels cannot meet on a narrow page."""
    points = [
        {"amax": 3000.0, "damage": 0.30, "label": "L3 down_proj"},
        {"amax": 2950.0, "damage": 0.31, "label": "L11 down_proj"},
        {"amax": 2.0, "damage": 1e-6, "label": "L0 o_proj"},
    ]
    assert [row["label"] for row in peak_against_damage.labels(points)] == ["L11 down_proj", "L0 o_proj"]
    assert [row["right"] for row in peak_against_damage.labels(points)] == [True, False]


@pytest.mark.parametrize("values", [[1.0], [1e-30, 1e30], [1e-300, 1e300], [5.0, 5.0]])
def test_axes_hold_any_magnitude(values: list[float]) -> None:
    low, high = theme.decades(values)
    assert 0 < low < min(values) or math.isclose(low, 1e-300)
    assert max(values) < high < math.inf or math.isclose(high, 1e300)
    assert 1 <= len(theme.powers(low, high)) <= 9


def test_group_lines_follow_the_static_scheme(card: Card) -> None:
    lines = CardView(card).groups
    assert len(lines) == LAYERS * 4 + 1
    assert lines[-1].group == "lm_head"
    damages = [line.damage for line in lines if line.damage is not None]
    assert damages == sorted(damages, reverse=True)
    static = {row.group: row.damage for row in _simulation(card).groups if row.scheme == STATIC}
    dynamic = {row.group: row.damage for row in _simulation(card).groups if row.scheme == DYNAMIC}
    assert all(line.damage == static[line.group] and line.damage_dynamic == dynamic[line.group] for line in lines)


def test_group_lines_without_a_static_scheme(card: Card) -> None:
    schemes = [scheme for scheme in _simulation(card).schemes if scheme.name == DYNAMIC]
    view = CardView(_with_simulation(card, schemes=schemes))
    lines = view.groups
    assert view.static is None
    assert lines[0].damage == lines[0].damage_dynamic


def test_tensor_errors_prefer_the_schemes_own_observer(card: Card) -> None:
    errors = _simulation(card).sites
    doubled = [row.model_copy(update={"observer": "mse", "sqnr_db": 99.0}) for row in errors] + errors
    chosen = CardView(_with_simulation(card, sites=doubled)).tensor_errors
    assert {row.observer for row in chosen.values()} == {"absolute_maximum"}


def _simulation(card: Card) -> Simulation:
    assert card.simulation is not None
    return card.simulation


@pytest.mark.parametrize(
    ("first", "last", "ticks"),
    [
        (0, 0, [0]),
        (0, 1, [0, 1]),
        (0, 2, [0, 1, 2]),
        (0, 12, list(range(13))),
        (3, 27, [3, *range(4, 27, 2), 27]),
        (0, 27, [0, 5, 10, 15, 20, 27]),
        (0, 31, [0, 5, 10, 15, 20, 25, 31]),
        (0, 125, [0, *range(20, 120, 20), 125]),
    ],
)
def test_layers_are_labeled_from_the_first_to_the_last(first: int, last: int, ticks: list[int]) -> None:
    assert theme.layer_ticks(first, last) == ticks


@given(st.floats(1e-9, 1e6), st.floats(1.001, 1e9))
def test_a_color_bar_has_its_labels_within(low: float, times: float) -> None:
    ticks = theme.ticks_between(low, low * times)
    assert len(ticks) > 1
    assert all(low <= tick <= low * times for tick in ticks)


def test_no_label_of_the_layer_map_stands_outside_of_its_bar(card: Card) -> None:
    bars = [item for item in _walk(_specs(card)["layer_map"]) if isinstance(item, dict) and "legend" in item]
    (color,) = [item for item in bars if "scale" in item]
    low, high = color["scale"]["domain"]
    assert all(low <= tick <= high for tick in color["legend"]["values"])
