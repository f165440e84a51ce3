"""The standard schemes fitted to a model, and those that are asked for."""

from __future__ import annotations

import pytest

from quantaudit.common.choices import INT8_SCHEMES, STANDARD_SCHEMES, group_size_that_divides
from quantaudit.errors import UsageError
from quantaudit.quant.schemes import SCHEMES
from quantaudit.quant.standard import choose_schemes

WIDE, NARROW, ODD = {"a": (64, 256), "b": (256, 576)}, {"a": (64, 64)}, {"a": (64, 64), "b": (64, 40)}


def test_the_int8_schemes_are_those_that_cards_compare() -> None:
    assert tuple(SCHEMES) == INT8_SCHEMES == STANDARD_SCHEMES[:2]


def test_integer_weights_take_the_largest_group_size_that_divides_and_say_so() -> None:
    chosen = choose_schemes("standard", (), WIDE)
    names = [scheme.name for scheme in chosen.schemes]
    assert len(names) == len(STANDARD_SCHEMES)
    assert "int4_weights_group_64" in names
    assert "int4_weights_group_64_int8_dynamic_per_token" in names
    titles = {scheme.name: scheme.title for scheme in chosen.schemes}
    assert titles["int4_weights_group_64"] == "W4A16: INT4 weights in groups of 64"
    sizes = {scheme.name: scheme.weights.group_size for scheme in chosen.schemes if scheme.weights}
    assert (sizes["int4_weights_group_64"], sizes["nvfp4"], sizes["mxfp4"]) == (64, 16, 32)
    assert chosen.left_out == ()
    assert chosen.price_alone == set(names) - set(INT8_SCHEMES)
    assert group_size_that_divides([256, 576]) == 64
    assert group_size_that_divides([40]) is None


def test_what_no_group_size_fits_is_left_out_with_the_reason() -> None:
    chosen = choose_schemes("standard", (), ODD)
    assert {scheme.name: reason for scheme, reason in chosen.left_out} == {
        "int4_weights_group_128": "b: 40 columns do not divide into groups of 32",
        "int4_weights_group_128_int8_dynamic_per_token": "b: 40 columns do not divide into groups of 32",
        "nvfp4": "b: 40 columns do not divide into groups of 16",
        "mxfp4": "b: 40 columns do not divide into groups of 32",
    }


def test_a_set_is_narrowed_or_widened_by_names() -> None:
    assert [scheme.name for scheme in choose_schemes("int8", (), NARROW).schemes] == [*INT8_SCHEMES]
    one = choose_schemes("fp8_e4m3_dynamic_per_token", (), NARROW)
    assert [scheme.name for scheme in one.schemes] == ["fp8_e4m3_dynamic_per_token"]
    assert one.price_alone == frozenset()
    wide = choose_schemes("int8, FP8_BLOCK", ("MXFP8",), {"a": (128, 256)})
    assert [scheme.name for scheme in wide.schemes] == [*INT8_SCHEMES, "fp8_block", "mxfp8"]


def test_what_is_asked_for_by_another_name_is_simulated_once_and_in_full() -> None:
    chosen = choose_schemes("standard", ("FP8_DYNAMIC",), NARROW)
    names = [scheme.name for scheme in chosen.schemes]
    assert "fp8_dynamic" in names
    assert "fp8_e4m3_dynamic_per_token" not in names
    assert "fp8_dynamic" not in chosen.price_alone


@pytest.mark.parametrize("name", ["int4_weights_group_128", "W4A16"])
def test_what_is_asked_for_and_does_not_fit_is_refused_with_the_size_that_does(name: str) -> None:
    with pytest.raises(UsageError) as error:
        choose_schemes("int8", (name,), WIDE)
    assert "b: 576 columns do not divide into groups of 128" in str(error.value)
    assert (
        error.value.hint
        == "--scheme int4_weights_group_64, or a recipe that leaves such modules out, given with --recipe"
    )
    (*_, fitted) = choose_schemes("int8", ("int4_weights_group_64",), WIDE).schemes
    assert fitted.name == "int4_weights_group_64"
    for other, shapes in ((name, ODD), ("nvfp4", ODD), ("FP8_BLOCK", NARROW)):
        with pytest.raises(UsageError) as error:
            choose_schemes("int8", (other,), shapes)
        assert error.value.hint.startswith("write a recipe")


@pytest.mark.parametrize("text", ["", "int8,", "int9", "standard,int8_static_per_tensor:median"])
def test_an_unknown_set_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--schemes"):
        choose_schemes(text, (), NARROW)
