"""Formats and schemes are what compressed_tensors understands under these names."""

from __future__ import annotations

import pytest
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
    QuantizationType,
)

from quantaudit.common.choices import GROUP_SIZES
from quantaudit.errors import UsageError
from quantaudit.quant.schemes import (
    INT8_DYNAMIC,
    INT8_STATIC,
    NAMED,
    NVFP4,
    SCHEMES,
    STATIC_INPUTS,
    Scheme,
    dump_args,
    find_scheme,
    find_static,
    scheme_from_compressed_tensors,
)


@pytest.mark.parametrize("name", STATIC_INPUTS)
def test_every_format_is_static_per_tensor_in_eight_bits(name: str) -> None:
    args = find_static(name)
    assert (args.num_bits, args.strategy, args.dynamic) == (8, QuantizationStrategy.TENSOR, False)
    assert args.observer == "static_minmax"


def test_formats_differ_in_type_and_symmetry() -> None:
    kinds = {name: (args.type, args.symmetric) for name, args in STATIC_INPUTS.items()}
    assert kinds == {
        "int8_static_per_tensor": (QuantizationType.INT, True),
        "int8_asymmetric_static_per_tensor": (QuantizationType.INT, False),
        "fp8_e4m3_static_per_tensor": (QuantizationType.FLOAT, True),
    }


def test_an_unknown_format_is_a_usage_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="int8_asymmetric"):
        find_static("int7")


def test_schemes_are_found_under_their_own_names() -> None:
    assert {name: scheme.name for name, scheme in SCHEMES.items()} == {name: name for name in SCHEMES}
    assert INT8_STATIC.static
    assert not INT8_DYNAMIC.static
    assert not Scheme(name="w", title="w", weights=INT8_STATIC.weights, input_activations=None, observer=None).static


@pytest.mark.parametrize(
    "args", [*STATIC_INPUTS.values(), INT8_STATIC.weights, INT8_DYNAMIC.weights, INT8_DYNAMIC.input_activations]
)
def test_dumped_arguments_load_back_as_the_same(args: QuantizationArgs) -> None:
    dumped = dump_args(args)
    assert dumped is not None
    assert QuantizationArgs(**dumped) == args


def test_no_arguments_dump_as_null() -> None:
    assert dump_args(None) is None


@pytest.mark.parametrize("name", NAMED)
def test_every_named_scheme_is_found_and_described(name: str) -> None:
    scheme = find_scheme(name)
    assert scheme is NAMED[name]
    for args in (scheme.weights, scheme.input_activations):
        dumped = dump_args(args)
        assert dumped is None or dump_args(QuantizationArgs(**dumped)) == dumped
    assert scheme.static == (scheme.observer is not None)


def test_presets_are_found_in_any_case() -> None:
    scheme = find_scheme("fp8_block")
    assert scheme.weights is not None
    assert scheme.weights.strategy == QuantizationStrategy.BLOCK
    assert scheme.name == "fp8_block"


@pytest.mark.parametrize("size", GROUP_SIZES)
def test_integer_weights_are_found_in_every_usual_group_size(size: int) -> None:
    for name in ("int4_weights_group_{}", "int4_weights_group_{}_int8_dynamic_per_token"):
        scheme = find_scheme(name.format(size))
        assert scheme.name == name.format(size)
        assert f"groups of {size}" in scheme.title
        assert scheme.weights is not None
        assert scheme.weights.group_size == size
    for other in ("int4_weights_group_48", "int4_weights_group_", f"int4_weights_group_0{size}", f"group_{size}"):
        with pytest.raises(UsageError, match="unknown scheme"):
            find_scheme(other)


def test_an_observer_can_be_chosen_for_a_static_scheme_alone() -> None:
    scheme = find_scheme("int8_static_per_tensor:minmax")
    assert (scheme.name, scheme.observer) == ("int8_static_per_tensor:minmax", "minmax")
    assert scheme.input_activations == INT8_STATIC.input_activations
    for spec in ("int8_dynamic_per_token:mse", "nvfp4:mse", "int8_static_per_tensor:best", "int7", "unquantized"):
        with pytest.raises(UsageError, match=spec):
            find_scheme(spec)


def test_a_recipes_static_input_has_llm_compressors_default_observer() -> None:
    args = QuantizationArgs(num_bits=8, strategy="tensor")
    built = QuantizationScheme(targets=["Linear"], input_activations=args)
    assert scheme_from_compressed_tensors("a", "a", built).observer == "minmax"
    assert NVFP4.static
    assert NVFP4.observer == "absolute_maximum"
