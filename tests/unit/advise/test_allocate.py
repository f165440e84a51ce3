"""Recipes within a budget, written from a card alone: exactly what was chosen, and one number with the gate."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import yaml

from quantaudit.advise.allocate import Allocation, allocate
from quantaudit.advise.budget import Budget
from quantaudit.advise.scheme_names import offered_schemes
from quantaudit.card.schema import Card
from quantaudit.common.rounding import significant
from quantaudit.errors import FormatError, UsageError
from quantaudit.gate.run import gate
from quantaudit.pipeline.advise import AllocatedRecipe, write_allocation
from quantaudit.policy import load_policy
from quantaudit.provenance import ModuleInfo
from quantaudit.recipe.digest import identity
from quantaudit.recipe.parse import parse_recipe
from quantaudit.recipe.resolve import resolve
from quantaudit.simulate.allocation import load_hardware
from quantaudit.simulate.scheme_info import info_scheme
from tests.card_factory import make_card
from tests.priced_cards import priced
from tests.skeletons import skeleton

POLICY = load_policy("default")


def advised(card: Card, budget: Budget, **options: Any) -> AllocatedRecipe:
    return write_allocation(allocate(card, budget, POLICY, **options), budget.in_words(POLICY), POLICY)


def chosen(allocation: Allocation) -> dict[str, str]:
    """Module path → what is to be done to it, by the choice alone."""
    infos = allocation.menu.schemes
    return {
        member: identity(info_scheme(infos[scheme]))
        for group, scheme in allocation.point.schemes.items()
        if scheme is not None
        for member in allocation.menu.members[group]
    }


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gpt-oss", "phi3"])
@pytest.mark.parametrize("bits", [4.6, 6.5, 10.0])
def test_the_recipe_resolves_on_the_model_to_exactly_what_was_chosen(family: str, bits: float) -> None:
    card = priced(family, seed=2)
    result = advised(card, Budget(max_bits=bits))
    resolution = resolve(parse_recipe(result.text, "recipe.yaml"), skeleton(family))
    wanted = chosen(result.allocation)
    assert {name: identity(scheme) for name, scheme in resolution.schemes.items()} == wanted
    assert wanted
    assert not resolution.unmatched
    assert not resolution.overlaps
    assert not {finding.code for finding in result.report.findings} & {"QA408", "QA409", "QA410", "QA421", "QA422"}
    # No module is named in two targets.
    modifier = yaml.safe_load(result.text)["quant_stage"]["quant_modifiers"]["QuantizationModifier"]
    targets = [target for group in modifier["config_groups"].values() for target in group["targets"]]
    assert max(Counter(targets).values()) == 1


def test_the_gate_says_of_the_written_file_what_advice_said(tmp_path: Any) -> None:
    card = priced(seed=1)
    for budget in (Budget(max_bits=6.0), Budget(max_kl=0.02), Budget(verdict="ready")):
        result, path = advised(card, budget), tmp_path / "recipe.yaml"
        result.write(path)
        report, point = gate(path, card, POLICY), result.allocation.point
        assert report.score == result.report.score
        assert (report.score.source, point.source) == ("estimated", "estimated")
        assert report.score.kl == pytest.approx(point.kl, rel=1e-12)
        assert report.score.kl_low == pytest.approx(point.kl_low, rel=1e-12)
        assert report.score.kl_high == pytest.approx(point.kl_high, rel=1e-12)
        assert "estimated, not simulated" in result.text
        assert f"KL {significant(report.score.kl)} nats per token" in result.text
    assert report.outcome == "pass"
    assert report.score.kl_high is not None
    assert report.score.kl_high <= POLICY.kl.ready


def test_all_groups_in_a_scheme_that_was_simulated_keep_the_measured_kl() -> None:
    card = priced()
    result = advised(card, Budget(max_bits=4.6), schemes=["nvfp4"], unquantized=False)
    assert (result.report.score.source, result.allocation.point.source) == ("measured", "measured")
    assert result.report.score.kl == result.allocation.point.kl
    assert result.report.score.kl_high == pytest.approx(result.allocation.point.kl_high)
    assert "not simulated" not in result.text


@pytest.mark.parametrize("bits", [4.6, 4.8, 6.0, 8.1, 11.0])
def test_no_scheme_stays_that_saves_next_to_nothing_and_no_choice_can_be_undone(bits: float) -> None:
    card = priced(seed=4)
    allocation = allocate(card, Budget(max_bits=bits), POLICY)
    menu, point = allocation.menu, allocation.point
    assert point.bits <= bits
    for unit in menu.units:
        index = unit.schemes.index(point.schemes[unit.groups[0]])
        for option, price in enumerate(unit.prices):
            bits_then = point.bits + 8 * (unit.sizes[option] - unit.sizes[index]) / menu.weights
            if bits_then <= bits:
                assert price >= unit.prices[index]
    assert {scheme for unit in menu.units for scheme in unit.schemes} == set(point.schemes.values())


def with_holders(card: Card) -> Card:
    """The card with the modules that hold those it lists."""
    infos: dict[str, ModuleInfo] = {}
    for info in card.model.modules:
        parts = info.name.split(".")
        for end in range(1, len(parts)):
            holder = ".".join(parts[:end])
            infos.setdefault(holder, ModuleInfo(name=holder, classes=["Module"], weight_shape=None))
        infos[info.name] = info
    return card.model_copy(update={"model": card.model.model_copy(update={"modules": list(infos.values())})})


def test_a_recipe_for_thirty_layers_fits_on_a_page_at_any_budget() -> None:
    card = priced(card=with_holders(make_card(layers=30)))
    for bits in (4.5, 4.7, 5.5, 7.0, 8.1, 10.0, 14.0):
        result = advised(card, Budget(max_bits=bits))
        assert len(result.text.splitlines()) <= 60
        assert len(chosen(result.allocation)) > 30


def test_few_schemes_cost_hardly_anything() -> None:
    from quantaudit.simulate.allocation import Limit, menu_of, size_of_bits, solve
    from quantaudit.simulate.allocation.plain import WORTH, solve_plainly

    for seed in range(4):
        card = priced(seed=seed)
        assert card.simulation is not None
        menu = menu_of(card.simulation, card.model, margin=2.0)
        for bits in np.linspace(4.5, 12, 6):
            size = size_of_bits(menu, float(bits))
            best, (_, plain) = solve(menu, Limit(max_size=size)), solve_plainly(menu, Limit(max_size=size))
            assert plain.size <= size
            assert best.price <= plain.price * (1 + 1e-9) <= best.price * (1 + WORTH) * (1 + 2e-9)
            assert set(plain.schemes.values()) <= set(best.schemes.values())


def test_schemes_are_named_as_elsewhere_and_only_those_with_a_price() -> None:
    card = priced()
    assert card.simulation is not None
    infos = [
        info.model_copy(update={"name": info.name.replace("int4_weights", "int4_weights_group_32")})
        for info in card.simulation.schemes
    ]
    rows = [
        row.model_copy(update={"scheme": row.scheme.replace("int4_weights", "int4_weights_group_32")})
        for row in card.simulation.groups
    ]
    simulation = card.simulation.model_copy(update={"schemes": infos, "groups": rows})
    assert offered_schemes(simulation, None) is None
    assert offered_schemes(simulation, "int4_weights_group_128,nvfp4") == ["int4_weights_group_32", "nvfp4"]
    assert offered_schemes(simulation, "standard") == ["int8_weights", "int4_weights_group_32", "nvfp4"]
    assert offered_schemes(simulation, "NVFP4,w4a16") == ["nvfp4", "int4_weights_group_32"]
    for other in ("mxfp4", "W8A16"):  # the preset has a scale for each 128 of a row
        with pytest.raises(UsageError, match="no prices of it"):
            offered_schemes(simulation, other)


@pytest.mark.parametrize(
    ("budget", "options", "words"),
    [
        (Budget(max_bits=2.0), {}, "--max-bits 2: no recipe of this menu is so small: the smallest has"),
        (Budget(max_kl=1e-9), {}, "--max-kl 1e-09: no recipe of this menu has so low a KL"),
        (Budget(max_bits=16.0), {"unquantized": True}, "nothing has to be quantized"),
        (Budget(max_kl=1e-12), {"unquantized": True}, "only the unquantized model is"),
    ],
)
def test_an_impossible_budget_is_refused_by_its_option(budget: Budget, options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        allocate(priced(), budget, POLICY, **options)


def test_a_scheme_that_was_simulated_is_a_budget() -> None:
    """By any of its names; the least bytes whose estimate is no worse."""
    card = priced(seed=2)
    assert card.simulation is not None
    (kl,) = (row.kl for row in card.simulation.recipes if row.name == "nvfp4")
    assert kl is not None
    for name in ("nvfp4", "NVFP4"):
        budget = Budget(as_good_as=name)
        found, same = (allocate(card, budget, POLICY) for budget in (budget, Budget(max_kl=kl)))
        assert found.point.schemes == same.point.schemes
        assert found.point.kl <= kl
        assert (str(budget), budget.in_words(POLICY)) == (f"--as-good-as {name}", f"as good as {name} in all groups")
    called = [info.model_copy(update={"title": "W8A16: INT8 weights"}) for info in card.simulation.schemes[:1]]
    named = card.model_copy(update={"simulation": card.simulation.model_copy(update={"schemes": called})})
    assert named.simulation is not None
    assert offered_schemes(named.simulation, "w8a16") == ["int8_weights"]
    with pytest.raises(UsageError, match=r"--as-good-as mxfp4: this card has no KL of it"):
        allocate(card, Budget(as_good_as="mxfp4"), POLICY)
    with pytest.raises(UsageError, match=r"--as-good-as dynamic: unknown scheme") as refused:
        allocate(card, Budget(as_good_as="dynamic"), POLICY)
    assert refused.value.hint == "`dynamic` is for a RECIPE, with --model"
    with pytest.raises(UsageError, match=r"--as-good-as gold: unknown scheme"):
        allocate(card, Budget(as_good_as="gold"), POLICY)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"max_bits": 5.0, "max_kl": 0.1},
        {"max_bits": -1.0},
        {"verdict": "good"},
        {"max_compute": 0.0},
        {"max_bits": 5.0, "minimize": "compute"},
        {"max_kl": 0.1, "minimize": "money"},
    ],
)
def test_what_is_no_budget_is_refused(values: Any) -> None:
    with pytest.raises(UsageError):
        Budget(**values)


def test_compute_is_that_of_a_machine_and_stands_in_the_recipe() -> None:
    card, hopper = priced(), load_hardware("hopper")
    budget = Budget(max_bits=7.0, max_compute=1.0)
    with pytest.raises(UsageError, match="--hardware hopper"):
        allocate(card, budget, POLICY)
    result = advised(card, budget, hardware=hopper)
    assert set(result.allocation.point.schemes.values()) <= {"int8_weights", "int4_weights", None}
    assert "# Multiply-accumulates of these Linears take 100% of the unquantized model's time on hopper" in result.text
    assert budget.in_words(POLICY) == "at most 7 bits a weight and at most 1 of the unquantized compute"
    assert str(Budget(max_compute=0.6)) == "--max-compute 0.6"
    assert Budget(max_compute=0.6).in_words(POLICY) == "at most 0.6 of the unquantized compute"
    assert all(row.mixture.kl <= row.point.kl for row in result.allocation.references)


def test_a_card_without_a_simulation_is_refused() -> None:
    with pytest.raises(FormatError, match="no simulation"):
        allocate(priced().model_copy(update={"simulation": None}), Budget(max_bits=5.0), POLICY)


def test_a_budget_is_named_without_powers_of_ten() -> None:
    assert str(Budget(max_bytes=10**12)) == "--max-bytes 1000000000000"
    assert str(Budget(max_bits=5.5)) == "--max-bits 5.5"
