"""Schemes tried on a Linear, arguments that llm-compressor finds too late, and kernels: each against the real thing."""

from __future__ import annotations

from typing import Any

import pytest
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

from quantaudit.errors import RecipeError
from quantaudit.gate.rules.phrases import gentler
from quantaudit.gate.scheme_summary import describe
from quantaudit.gate.vllm_kernels import has_kernel
from quantaudit.recipe.modifiers.trial import known_observer, observers, try_scheme
from quantaudit.recipe.parse import parse_recipe

CHANNEL = {"num_bits": 8, "strategy": "channel"}


def scheme(**parts: Any) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], **parts)


@pytest.mark.parametrize("name", PRESET_SCHEMES)
def test_every_preset_runs(name: str) -> None:
    trial = try_scheme(preset_name_to_scheme(name, ["Linear"]))
    assert (trial.refused, trial.unread) == (None, ())
    assert trial.format is not None


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"weights": {"num_bits": 4, "type": "float"}}, "num_bits"),
        ({"weights": {"num_bits": 8, "strategy": "attn_head"}}, "3 observed dimensions"),
        ({"weights": {"num_bits": 8, "strategy": "tensor", "dynamic": True}}, "NoneType"),
        ({"weights": {**CHANNEL, "type": "float"}, "format": "pack-quantized"}, "cannot hold"),
        ({"weights": {**CHANNEL, "symmetric": False, "zp_dtype": "torch.float32"}}, "before packing"),
        ({"weights": CHANNEL, "input_activations": {"num_bits": 8, "strategy": "attn_head"}}, "3 observed"),
        (
            {
                "weights": {"num_bits": 4, "strategy": "group", "group_size": 4093},
                "input_activations": {"num_bits": 8, "strategy": "group", "group_size": 4091, "dynamic": True},
            },
            "divide no matrix of less than 16 by 1,071,",
        ),
    ],
)
def test_what_cannot_run_is_said_in_llm_compressors_words(parts: dict[str, Any], words: str) -> None:
    refused = try_scheme(scheme(**parts)).refused
    assert refused is not None
    assert words in refused


def test_an_observer_is_asked_which_arguments_it_reads() -> None:
    args = {**CHANNEL, "observer": "mse", "observer_kwargs": {"maxshrink": 0.3, "grids": 50}}
    assert try_scheme(scheme(weights=args)).unread == ("weights.observer_kwargs.grids",)
    dynamic = {"num_bits": 8, "strategy": "token", "dynamic": True, "observer_kwargs": {"anything": 1}}
    assert try_scheme(scheme(weights=CHANNEL, input_activations=dynamic)).unread == ()


def test_a_trial_leaves_the_scheme_as_it_was() -> None:
    given = scheme(weights={**CHANNEL, "observer": "mse", "observer_kwargs": {"grid": 10}})
    before = given.model_dump()
    try_scheme(given)
    assert given.model_dump() == before


def test_observers_are_known_by_any_spelling_that_the_registry_takes() -> None:
    assert all(known_observer(name.replace("-", "_").upper()) for name in observers())
    assert not known_observer("percentile")


# Arguments ------------------------------------------------------------------------------------------------------------


def modifier(name: str, body: str) -> str:
    return f"q_stage: {{q_modifiers: {{{name}: {{{body}}}}}}}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (modifier("GPTQModifier", "scheme: W4A16, actorder: dynamic"), "no longer supported"),
        (modifier("GPTQModifier", "scheme: W4A16, actorder: sometimes"), "no order of columns"),
        (modifier("GPTQModifier", "scheme: W4A16, block_size: 0"), "`block_size` is 0"),
        (modifier("GPTQModifier", "scheme: W4A16, dampening_frac: -0.1"), "`dampening_frac` is -0.1"),
        (modifier("SmoothQuantModifier", "smoothing_strength: 1.5"), "`smoothing_strength` is 1.5"),
        (modifier("QuantizationModifier", "scheme: FP8, input_observer: minmx"), "no observer `minmx`"),
        (modifier("QuantizationModifier", "scheme: FP8, kv_cache_scheme: {observer: x}"), "no observer `x`"),
        (modifier("QuantizationModifier", "scheme: FP8, config_groups: {g: {targets: [Linear]}}"), "either `scheme`"),
        (modifier("QuantizationModifier", "config_groups: {g: {targets: [L], weights: {num_bits: 1}}}"), "num_bits"),
    ],
)
def test_arguments_that_fail_late_fail_at_once(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_recipe(text, "r.yaml")


@pytest.mark.parametrize("order", ["static", "weight", "null"])
def test_orders_that_exist_are_taken(order: str) -> None:
    parse_recipe(modifier("GPTQModifier", f"scheme: W4A16, actorder: {order}"), "r.yaml")


def test_an_awq_with_a_scheme_is_told_where_it_belongs() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(modifier("AWQModifier", "scheme: W4A16"), "r.yaml")
    assert "to a QuantizationModifier" in str(caught.value)


# Kernels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["W8A8", "W4A16", "W8A16", "W4A16_ASYM", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4",
                                  "NVFP4A16", "MXFP4", "MXFP8", "W4AFP8", "W4A8", "W2A16"])  # fmt: skip
@pytest.mark.parametrize("experts", [False, True])
def test_presets_that_are_served_have_kernels(name: str, experts: bool) -> None:
    preset = preset_name_to_scheme(name, ["Linear"])
    assert has_kernel(preset, str(try_scheme(preset).format), experts=experts)


@pytest.mark.parametrize(
    ("parts", "linears", "experts"),
    [
        ({"weights": CHANNEL, "input_activations": {"num_bits": 8, "strategy": "tensor"}}, True, False),
        ({"weights": {"num_bits": 4}}, False, False),
        ({"weights": {**CHANNEL, "symmetric": False}, "input_activations": {"num_bits": 8}}, False, False),
        ({"weights": {**CHANNEL, "type": "float"}}, True, False),
    ],
)
def test_kernels_by_hand(parts: dict[str, Any], linears: bool, experts: bool) -> None:
    tried = scheme(**parts)
    stored = str(try_scheme(tried).format)
    assert (has_kernel(tried, stored, experts=False), has_kernel(tried, stored, experts=True)) == (linears, experts)


# Remedies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PRESET_SCHEMES if name != "UNQUANTIZED"])
def test_no_remedy_asks_a_scheme_to_become_what_it_is(name: str) -> None:
    way = describe(preset_name_to_scheme(name, ["Linear"]))
    said = gentler([way], "these groups")
    assert ("dynamically" in said) == (way.static and name != "NVFP4")
    assert ("weights of these groups alone" in said) == (way.inputs and (not way.static or name == "NVFP4"))
    assert ("more bits" in said) == (way.bits is not None and way.bits <= 4)
    assert said.endswith("unquantized")
