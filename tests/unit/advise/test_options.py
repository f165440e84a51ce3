"""Options of a menu: what they are called, what they keep, and that llm-compressor can be given each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme

from quantaudit.advise.goal import Offers
from quantaudit.advise.options import fits, options_for
from quantaudit.quant.schemes import INT8, INT8_PER_CHANNEL

STATIC = QuantizationScheme(targets=["Linear"], weights=INT8_PER_CHANNEL, input_activations=INT8)


ALL = Offers(smoothing=False, moving_averages=True, unquantized=True)


def names(scheme: QuantizationScheme, **arguments: bool) -> dict[str, bool]:
    return {option.name: option.keeps_format for option in options_for(scheme, replace(ALL, **arguments))}


def test_static_int8_can_change_its_observer_its_symmetry_or_become_dynamic() -> None:
    assert names(STATIC) == {
        "as_written": True,
        "static_minmax_asymmetric": True,
        "minmax": True,
        "minmax_asymmetric": True,
        "dynamic": False,
        "dynamic_asymmetric": False,
        "unquantized": False,
    }


def test_what_an_engineer_would_not_merge_unasked_is_offered_on_request() -> None:
    assert {option.name for option in options_for(STATIC, Offers(smoothing=False))} == {
        "as_written",
        "static_minmax_asymmetric",
        "dynamic",
        "dynamic_asymmetric",
    }


def test_without_moving_averages_no_option_hangs_on_the_order_of_samples() -> None:
    options = options_for(STATIC, replace(ALL, moving_averages=False))
    observers = [o.scheme.input_activations.observer for o in options if o.scheme and o.keeps_format]
    assert set(observers) == {"static_minmax"}


def test_without_unquantized_every_option_quantizes() -> None:
    assert list(names(STATIC, unquantized=False)) == [name for name in names(STATIC) if name != "unquantized"]
    assert names(preset_name_to_scheme("W4A16", ["Linear"]), unquantized=False) == {"as_written": True}


def test_fp8_has_no_asymmetric_options() -> None:
    assert names(preset_name_to_scheme("FP8", ["Linear"])) == {
        "as_written": True,
        "minmax": True,
        "dynamic": False,
        "unquantized": False,
    }


def test_dynamic_keeps_its_format_when_it_becomes_asymmetric() -> None:
    assert names(preset_name_to_scheme("INT8", ["Linear"])) == {
        "as_written": True,
        "dynamic_asymmetric": True,
        "unquantized": False,
    }


@pytest.mark.parametrize("preset", ["W4A16", "NVFP4", "MXFP4", "FP8_BLOCK"])
def test_other_formats_can_only_be_left_out(preset: str) -> None:
    assert names(preset_name_to_scheme(preset, ["Linear"])) == {"as_written": True, "unquantized": False}


def test_options_keep_weights_as_they_are() -> None:
    assert all(o.scheme.weights == STATIC.weights for o in options_for(STATIC, ALL) if o.scheme)


def test_an_option_that_does_not_divide_does_not_fit() -> None:
    grouped = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=128)
    )
    written, unquantized = options_for(grouped, ALL)
    assert fits(written, [(8, 256)])
    assert not fits(written, [(8, 256), (8, 100)])
    assert fits(unquantized, [(8, 100)])
