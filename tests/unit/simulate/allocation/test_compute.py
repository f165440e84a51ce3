"""Compute on a machine: its table, what it runs, and the time of multiply-accumulates counted by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantaudit.card.schema import Card
from quantaudit.errors import FormatError, UsageError
from quantaudit.quant.schemes import find_scheme
from quantaudit.simulate.allocation import Hardware, Limit, Menu, Serving, load_hardware, menu_of, size_of_bits, solve
from quantaudit.simulate.allocation.hardware import PRESETS, operands_of, shipped_hardware
from quantaudit.simulate.allocation.plain import WORTH, solve_plainly
from quantaudit.simulate.allocation.solve import Point, point_of, uniform
from quantaudit.simulate.scheme_info import scheme_info
from tests.priced_cards import priced

ROOT = Path(__file__).resolve().parents[4]
MACHINE = Hardware(name="mine", devices="ours", mac_time={"weights_only": 1.1, "nvfp4": 0.3}, reason="measured")


def menu(card: Card, hardware: Hardware = MACHINE, **options: Any) -> Menu:
    tokens = {site.module: site.tokens for site in card.sites if site.tap == "input"}
    assert card.simulation is not None
    options = {"margin": 2.0, "unquantized": True, "serving": Serving(hardware, tokens), **options}
    return menu_of(card.simulation, card.model, **options)


def routed(family: str) -> Card:
    """A priced card whose experts read twice the corpus, as two of them do for each token."""
    card = priced(family, seed=3)
    tokens = {True: 2048, False: 1024}
    sites = [site.model_copy(update={"tokens": tokens[".experts" in site.module]}) for site in card.sites]
    return card.model_copy(update={"sites": sites})


def by_hand(card: Card, point: Point, hardware: Hardware) -> float:
    """Σ time over Σ time in 16 bits, every token through every matrix that it meets."""
    shapes = {info.name: info.weight_shape for info in card.model.modules if info.weight_shape}
    assert card.simulation is not None
    members = {row.group: row.members for row in card.simulation.groups}
    infos = {info.name: info for info in card.simulation.schemes}
    spent = whole = np.float64(0)
    for group, scheme in point.schemes.items():
        experts = {match[1] for path in members[group] if (match := re.search(r"experts\.(\d+)\.", path))}
        share = 2 / len(experts) if experts else 1.0
        macs = np.float64(sum(np.prod(shapes[path] or [0]) for path in members[group])) * 1024 * share
        time = hardware.time_of(infos[scheme]) if scheme else 1.0
        assert time is not None
        spent, whole = spent + macs * time, whole + macs
    return float(spent / whole)


@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_a_point_takes_the_time_of_its_products_and_experts_that_of_their_tokens(family: str) -> None:
    card = routed(family)
    choices = menu(card)
    rng = np.random.default_rng(0)
    for _ in range(20):
        point = point_of(choices, [int(rng.integers(len(unit.schemes))) for unit in choices.units])
        assert point.compute == pytest.approx(by_hand(card, point, MACHINE), rel=1e-7)
    alone = uniform(choices, "nvfp4")
    assert alone is not None
    assert alone.compute == pytest.approx(0.3)
    assert uniform(choices, "nvfp4") == solve(choices, Limit(max_compute=0.3))
    assert solve(choices, Limit(max_compute=alone.compute)) == alone
    assert menu_of(card.simulation, card.model).units[0].compute == (0,) * 3  # type: ignore[arg-type]


def test_what_a_machine_does_not_run_is_not_offered() -> None:
    integers = MACHINE.model_copy(update={"mac_time": {"weights_only": 1.0, "int8": 0.5}})
    choices = menu(priced(), integers)
    assert sorted(choices.schemes) == ["int4_weights", "int8_weights"]
    assert choices.not_run == ("nvfp4",)
    with pytest.raises(UsageError, match=r"--hardware mine: runs none of nvfp4") as refused:
        menu(priced(), integers, schemes=["nvfp4"])
    assert refused.value.hint == (
        "it runs int8_weights, int8_static:minmax, int4_weights, which the card has prices of: name these with "
        "--schemes, or leave that out"
    )
    floats = MACHINE.model_copy(update={"mac_time": {"fp8": 0.5, "mxfp4": 0.3}})
    with pytest.raises(UsageError, match="--hardware mine: runs none of int8_weights, int4_weights, nvfp4") as refused:
        menu(priced(), floats)
    assert refused.value.hint == (
        "give prices of what it runs: `quantaudit report --scheme FP8_DYNAMIC --scheme MXFP4`"
    )


@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_no_other_choice_within_bytes_and_compute_is_better(family: str) -> None:
    choices = menu(routed(family))
    rng = np.random.default_rng(1)
    points = [point_of(choices, [int(rng.integers(len(u.schemes))) for u in choices.units]) for _ in range(3000)]
    for bits, most in ((4.6, 0.5), (6.0, 0.8), (9.0, 0.6), (12.0, 0.95)):
        limit = Limit(max_size=size_of_bits(choices, bits), max_compute=most)
        best = solve(choices, limit)
        assert limit.holds(best)
        assert best.price <= min((p.price for p in points if limit.holds(p)), default=np.inf) * 1.002
        faster = Limit(max_kl=best.kl, least="compute")
        least = min((p.compute or 0.0 for p in [*points, best] if faster.holds(p)), default=np.inf)
        assert (solve(choices, faster).compute or 0.0) <= least + 1e-3
        both = Limit(max_kl=best.kl, max_compute=most)
        assert solve(choices, both).size <= min(p.size for p in [*points, best] if both.holds(p)) * 1.002


def test_compute_alone_is_a_limit_and_too_little_says_what_is_possible() -> None:
    choices = menu(priced())
    points = [solve(choices, Limit(max_compute=most)) for most in (0.3, 0.5, 0.8, 1.0)]
    assert [round(point.compute or 0.0, 6) <= most for point, most in zip(points, (0.3, 0.5, 0.8, 1.0), strict=True)]
    assert [point.price for point in points] == sorted((point.price for point in points), reverse=True)
    assert points[-1].kl == 0
    with pytest.raises(UsageError, match=r"the least compute is 0\.3 of the unquantized"):
        solve(choices, Limit(max_compute=0.2))
    with pytest.raises(UsageError, match=r"in so few bytes: the least compute is 0\.[3-9]"):
        solve(choices, Limit(max_compute=0.2, max_size=size_of_bits(choices, 4.6)))
    with pytest.raises(UsageError, match=r"so low a KL at 0\.4 of the compute"):
        solve(choices, Limit(max_compute=0.4, max_kl=1e-9))


def estimated(seed: int) -> Card:
    """A card with no scheme that was simulated."""
    card = priced(seed=seed)
    assert card.simulation is not None
    return card.model_copy(update={"simulation": card.simulation.model_copy(update={"recipes": []})})


@pytest.mark.parametrize("seed", range(4))
def test_at_the_same_cost_the_least_kl_is_taken_however_much_is_allowed(seed: int) -> None:
    integers = MACHINE.model_copy(update={"mac_time": {"weights_only": 1.0, "nvfp4": 0.5, "int8": 0.5}})
    choices = menu(estimated(seed), integers, schemes=["nvfp4", "int8_static:minmax", "int8_weights"])
    fast = {"nvfp4", "int8_static:minmax"}
    prices = [min(p for p, name in zip(u.prices, u.schemes, strict=True) if name in fast) for u in choices.units]
    limit = Limit(max_kl=100.0, least="compute")
    best = solve(choices, limit)
    assert best.compute == pytest.approx(0.5)
    assert best.price == pytest.approx(sum(prices))
    assert solve_plainly(choices, limit)[1].price <= best.price * (1 + WORTH)


@pytest.mark.parametrize("better", ["nvfp4", "int4_weights"])
def test_of_schemes_of_one_size_the_better_is_kept(better: str) -> None:
    card = estimated(3)
    assert card.simulation is not None
    info = {row.name: row for row in card.simulation.schemes}["nvfp4"]
    twins = ["nvfp4", "int4_weights"]
    rows = [
        row.model_copy(update={"price": (row.price or 0.0) * (1 if row.scheme == better else 100)})
        for row in card.simulation.groups
        if row.scheme in twins
    ]
    infos = [info.model_copy(update={"name": name}) for name in twins]
    choices = menu(
        card.model_copy(update={"simulation": card.simulation.model_copy(update={"schemes": infos, "groups": rows})})
    )
    for most in (1.0, 100.0):
        assert set(solve_plainly(choices, Limit(max_kl=most))[1].schemes.values()) == {better}


def test_a_scheme_that_was_measured_to_be_better_is_taken_before_an_estimate() -> None:
    card = priced(seed=4)
    assert card.simulation is not None
    rows = [
        row.model_copy(update={"kl": 1e-6, "kl_stderr": 1e-8}) if row.name == "nvfp4" else row
        for row in card.simulation.recipes
    ]
    card = card.model_copy(update={"simulation": card.simulation.model_copy(update={"recipes": rows})})
    choices = menu(card)
    for limit in (
        Limit(max_size=size_of_bits(choices, 5.0)),
        Limit(max_kl=2e-6),
        Limit(max_kl_high=2e-6),
        Limit(max_size=size_of_bits(choices, 5.0), max_compute=0.3),
    ):
        point = solve(choices, limit)
        assert (set(point.schemes.values()), point.source) == ({"nvfp4"}, "measured")


def test_every_preset_has_the_operands_that_stand_for_it() -> None:
    for operands, preset in PRESETS.items():
        assert operands_of(scheme_info(find_scheme(preset))) == operands
    assert operands_of(scheme_info(find_scheme("FP8_BLOCK"))) == "fp8"
    assert operands_of(scheme_info(find_scheme("W6A8"))) == "int6_int8"


def test_the_shipped_table_is_the_documented_one() -> None:
    text = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
    lines = [line for line in text.partition("## Compute")[2].splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines)
    documented = {
        row[0]: {column: float(cell) for column, cell in zip(header, row, strict=True) if column and cell}
        for row in rows
    }
    assert documented == {name: machine.mac_time for name, machine in shipped_hardware().items()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mine: {devices: x, mac_time: {int9: 0.5}, reason: y}", "int9"),
        ("mine: {devices: x, mac_time: {int8: 0}, reason: y}", "greater than 0"),
        ("mine: {devices: x, mac_time: {int8: .nan}, reason: y}", "finite"),
        ("mine: {devices: x, mac_time: {int8: true}, reason: y}", "valid number"),
        ("mine: {devices: x, mac_time: {}, reason: y}", "at least 1"),
        ("mine: {devices: x, mac_time: {int8: 0.5}}", "reason"),
        ("mine: {devices: x, mac_time: {int8: 5e-1}, reason: y}", "YAML reads 5e-1 as text"),
        ('"a\\e[31m": {devices: x, mac_time: {int8: 0.5}, reason: y}', "match pattern"),
        ("{}", "holds 0 machines"),
        ("a: &a {devices: x, mac_time: {int8: 0.5}, reason: y}\nb: *a", "holds 2 machines"),
        ("- 1", "not a table"),
        ("a: [", "not YAML"),
    ],
)
def test_a_table_that_is_none_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=words):
        load_hardware(str(path))


def test_a_machine_is_named_or_given_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine: {devices: ours, mac_time: {int8: 0.6}, reason: measured}", encoding="utf-8")
    machine = load_hardware(str(path))
    assert (machine.name, machine.mac_time) == ("mine", {"int8": 0.6})
    assert load_hardware("hopper").mac_time["fp8"] == 0.5
    with pytest.raises(UsageError, match="one of ampere"):
        load_hardware("abacus")
    with pytest.raises(FormatError, match="no such file"):
        load_hardware(str(tmp_path / "none.yaml"))
