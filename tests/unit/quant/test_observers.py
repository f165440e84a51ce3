"""Scales are those of compressed-tensors and llm-compressor: of functions, observer objects and written formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams

from quantaudit.common.choices import check_observer
from quantaudit.errors import UsageError
from quantaudit.quant.observers import (
    OBSERVERS,
    ORDERS,
    Observed,
    applies,
    last_batch,
    minmax,
    mse,
    observer_of,
    order_spread,
    percentile,
    qparams_from,
)
from quantaudit.quant.schemes import FP8_E4M3, INT8, INT8_ASYMMETRIC, STATIC_INPUTS
from quantaudit.stats.distribution import zero
from tests.unit.quant.tensors import DTYPES, SPREAD, TENSORS, extremes, observed, qparams, tensor

EPS = {name: torch.finfo(dtype).eps for name, dtype in DTYPES.items()}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", STATIC_INPUTS)
def test_absolute_maximum_is_compressed_tensors_own_function_on_the_raw_tensor(
    name: str, dtype: str, form: str
) -> None:
    x = tensor(name, dtype)
    scale, zero_point = calculate_qparams(x.min().reshape(1), x.max().reshape(1), STATIC_INPUTS[form])
    actual = qparams(x, STATIC_INPUTS[form])
    assert torch.equal(actual.scale, scale)
    assert torch.equal(actual.zero_point, zero_point)
    assert actual.scale.dtype == x.dtype
    assert (actual.min, actual.max) == extremes(x)


@pytest.mark.parametrize("name", SPREAD)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", STATIC_INPUTS)
def test_llmcompressors_static_minmax_observer_gives_the_same_scale(name: str, dtype: str, form: str) -> None:
    from llmcompressor.observers import Observer

    x = tensor(name, dtype)
    args = STATIC_INPUTS[form].model_copy(deep=True)
    observer = Observer.load_from_registry("static_minmax", base_name="input", args=args)
    for batch in x.tensor_split(5):
        observer(batch.reshape(1, -1, 1))
    theirs = observer.get_qparams()
    ours = qparams(x, STATIC_INPUTS[form])
    assert torch.equal(ours.scale, theirs["scale"].reshape(1))
    assert torch.equal(ours.zero_point, theirs["zero_point"].reshape(1))


@pytest.mark.parametrize("observer", ["minmax", "static_minmax", "memoryless_minmax"])
@pytest.mark.parametrize("name", SPREAD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_llmcompressors_observers_are_replayed_batch_by_batch(name: str, dtype: str, observer: str) -> None:
    """From nothing but each batch's extremes, to the last bit."""
    from llmcompressor.observers import Observer

    x = tensor(name, dtype)
    args = INT8.model_copy(update={"observer": observer}, deep=True)
    theirs = Observer.load_from_registry(observer, base_name="input", args=args)
    for batch in x.tensor_split(7):
        theirs(batch.reshape(1, -1, 1))
    actual = qparams_from(observed(x, 7), args, observer_of(args))
    assert actual is not None
    assert torch.equal(actual.scale, theirs.get_qparams()["scale"].reshape(1))


@pytest.mark.parametrize("form", STATIC_INPUTS)
@pytest.mark.parametrize("name", ["massive outlier", "tails", "negative"])
def test_the_spread_over_orders_is_that_of_llmcompressors_observer_on_shuffled_batches(name: str, form: str) -> None:
    from llmcompressor.observers import Observer

    batches = tensor(name, "bfloat16").tensor_split(9)
    generator = np.random.default_rng(0)
    scales = []
    for order in [np.arange(9), *(generator.permutation(9) for _ in range(ORDERS - 1))]:
        args = STATIC_INPUTS[form].model_copy(update={"observer": "minmax"}, deep=True)
        theirs = Observer.load_from_registry("minmax", base_name="input", args=args)
        for index in order:
            theirs(batches[index].reshape(1, -1, 1))
        scales.append(float(theirs.get_qparams()["scale"]))
    actual = order_spread(observed(tensor(name, "bfloat16"), 9), STATIC_INPUTS[form])
    assert actual == max(scales) / min(scales)
    assert len(set(scales)) > 1
    if name == "massive outlier":
        # Seen first, the peak weighs .99^8 in all; seen later, a hundredth at most.
        assert actual > 20


def test_batches_that_are_alike_have_no_order() -> None:
    seen = replace(observed(tensor("gaussian", "float32")), lows=np.float32([-4] * 5), highs=np.float32([4] * 5))
    assert order_spread(seen, INT8) == pytest.approx(1.0, abs=1e-6)
    single = replace(seen, lows=seen.lows[:1], highs=seen.highs[:1])
    assert order_spread(single, INT8) == 1.0


def test_the_moving_average_takes_the_recipes_constant() -> None:
    seen = replace(observed(tensor("gaussian", "float32")), lows=np.float32([-4, -2, -1]), highs=np.float32([4, 2, 8]))
    half = INT8.model_copy(update={"observer_kwargs": {"averaging_constant": 0.5}})
    assert minmax(seen, half) == (-2.0, 5.5)
    whole = INT8.model_copy(update={"observer_kwargs": {"averaging_constant": 1.0}})
    assert minmax(seen, whole) == last_batch(seen, INT8) == (-1.0, 8.0)
    assert minmax(seen, INT8) == pytest.approx((-3.9502, 4.0202), rel=1e-6)


@pytest.mark.parametrize("name", SPREAD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_follow_the_written_formulas(name: str, dtype: str) -> None:
    x = tensor(name, dtype)
    low, high = extremes(x)
    amax = max(-low, high)
    span = max(high, 0.0) - min(low, 0.0)  # zero is always representable
    close = {"rel": EPS[dtype]}
    assert float(qparams(x, INT8).scale) == pytest.approx(amax / 127.5, **close)
    assert float(qparams(x, FP8_E4M3).scale) == pytest.approx(amax / 448, **close)
    assert float(qparams(x, INT8, "absolute_maximum_127").scale) == pytest.approx(amax / 127, rel=2 * EPS[dtype])
    asymmetric = qparams(x, INT8_ASYMMETRIC)
    assert float(asymmetric.scale) == pytest.approx(span / 255, rel=2 * EPS[dtype])
    # An 8-bit mantissa places the zero point within one code of −128 − min/scale.
    assert int(asymmetric.zero_point) == pytest.approx(-128 - min(low, 0.0) / (span / 255), abs=1.0)
    assert int(qparams(x, INT8).zero_point) == 0


def test_the_textbook_values() -> None:
    x = torch.tensor([-1.0, 2.55])
    assert float(qparams(x, INT8).scale) == pytest.approx(0.02, rel=1e-6)
    assert float(qparams(x, INT8, "absolute_maximum_127").scale) == pytest.approx(2.55 / 127, rel=1e-6)
    assert float(qparams(x, INT8_ASYMMETRIC).scale) == pytest.approx(3.55 / 255, rel=1e-6)
    assert int(qparams(x, INT8_ASYMMETRIC).zero_point) == round(-128 + 255 / 3.55)
    assert float(qparams(x, FP8_E4M3).scale) == pytest.approx(2.55 / 448, rel=1e-6)


@pytest.mark.parametrize("form", STATIC_INPUTS)
@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_all_zero_tensor_gets_a_positive_scale_that_keeps_its_zeros(dtype: str, observer: str, form: str) -> None:
    x = tensor("zeros", dtype)
    actual = qparams(x, STATIC_INPUTS[form], observer)
    assert float(actual.scale) > 0
    assert torch.equal(fake_quantize(x, actual.scale, actual.zero_point, STATIC_INPUTS[form]), x)


@pytest.mark.parametrize("level", [0.5, 0.99, 0.999, 0.9999, 1.0])
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_percentile_clips_at_numpys_quantile_of_the_magnitude(dtype: str, name: str, level: float) -> None:
    x = tensor(name, dtype)
    low, high = extremes(x)
    limit = float(np.quantile(x.double().abs().numpy(), level, method="inverted_cdf"))
    assert percentile(level)(observed(x), INT8) == (max(low, -limit), min(high, limit))


@pytest.mark.parametrize(("observer", "level"), [("percentile_99.9", 0.999), ("percentile_99.99", 0.9999)])
def test_percentile_observers_are_named_after_their_level(observer: str, level: float) -> None:
    x = tensor("tails", "bfloat16")
    limit = float(np.quantile(x.double().abs().numpy(), level, method="inverted_cdf"))
    assert limit < float(x.abs().max())
    assert float(qparams(x, INT8, observer).scale) == pytest.approx(limit / 127.5, rel=2**-7)


def squared_error(x: np.ndarray, low: float, high: float, args: QuantizationArgs) -> float:
    """Σ(x − x̂)² by compressed-tensors, in float32 arithmetic and float64 sums."""
    scale, zero_point = calculate_qparams(torch.tensor([low]), torch.tensor([high]), args)
    single = torch.from_numpy(x).float()
    return float(((single - fake_quantize(single, scale, zero_point, args)).double() ** 2).sum())


@pytest.mark.parametrize("form", STATIC_INPUTS)
@pytest.mark.parametrize("name", SPREAD)
def test_the_mse_range_beats_every_range_of_a_brute_force_grid(name: str, form: str) -> None:
    args = STATIC_INPUTS[form]
    x = tensor(name, "bfloat16")
    raw, (low, high) = x.double().numpy(), extremes(x)
    actual = squared_error(raw, *mse(observed(x), args), args)
    grid = np.concatenate([np.linspace(0.005, 1, 200), np.geomspace(1e-3, 1, 100)])
    best = min(squared_error(raw, low * shrink, high * shrink, args) for shrink in grid)
    assert actual <= 1.02 * best
    assert actual <= squared_error(raw, low, high, args)


def test_the_mse_range_clips_where_clipping_pays_and_not_where_it_does_not() -> None:
    clipped = mse(observed(tensor("tails", "bfloat16")), INT8)
    assert clipped[1] < 700
    x = tensor("massive outlier", "bfloat16")
    low, high = mse(observed(x), INT8)
    assert high > 0.9 * float(x.max())
    assert low / high == pytest.approx(float(x.min()) / float(x.max()))


@pytest.mark.parametrize("exact", [(math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0), (math.nan, math.nan)])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_no_grid_spans_a_range_that_is_not_finite(exact: tuple[float, float], observer: str) -> None:
    lows, highs = np.array(exact, np.float32)[:, None]
    seen = Observed(distribution=zero("bfloat16"), exact=exact, lows=lows, highs=highs, dtype=torch.bfloat16)
    assert qparams_from(seen, INT8, observer) is None


def test_an_unknown_observer_is_a_usage_error_that_lists_the_known_ones() -> None:
    assert check_observer("mse") == "mse"
    with pytest.raises(UsageError, match="absolute_maximum"):
        check_observer("histogram")


def test_the_127_convention_belongs_to_symmetric_int8_alone() -> None:
    assert {form for form, args in STATIC_INPUTS.items() if applies("absolute_maximum_127", args)} == {
        "int8_static_per_tensor"
    }
    assert all(
        applies(observer, args) for observer in OBSERVERS for args in STATIC_INPUTS.values() if "127" not in observer
    )


@pytest.mark.parametrize("name", SPREAD)
def test_groups_that_scale_themselves_share_one_scale_of_the_whole_tensor(name: str) -> None:
    """NVFP4: the largest magnitude takes the largest product of an FP8 scale and an FP4 code, 448 · 6, in bfloat16."""
    args = preset_name_to_scheme("NVFP4", ["Linear"]).input_activations
    assert args is not None
    x = tensor(name, "bfloat16")
    actual = qparams(x, args)
    assert actual.global_scale is not None
    assert float(actual.global_scale) == pytest.approx(448 * 6 / float(x.abs().max()), rel=2**-7)
    assert (len(actual.scale), len(actual.zero_point)) == (0, 0)
