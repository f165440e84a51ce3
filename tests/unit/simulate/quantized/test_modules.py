"""Linears run quantized exactly as long as the context lasts, and in the arithmetic of compressed_tensors."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize

from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, discover
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_PER_CHANNEL, INT8_STATIC, Scheme
from quantaudit.simulate.quantized.modules import input_quantizer, quantize_weight, quantized
from tests.builders import hooks, tiny_model, weight_bytes
from tests.unit.simulate.reference import NOTHING, WEIGHTS_ONLY

CPU = torch.device("cpu")


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
    return (x * torch.linspace(0.1, 30, shape[-2])[:, None]).to(dtype)  # rows of very different size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_weight_gets_one_symmetric_scale_for_each_output_channel(dtype: torch.dtype) -> None:
    weight = normal(20, 33, dtype=dtype)
    restored = quantize_weight(weight, INT8_PER_CHANNEL)
    assert restored.dtype == dtype
    for row, restored_row in zip(weight, restored, strict=True):
        scale = row.abs().max() / 127.5
        zero_point = torch.zeros(1, dtype=torch.int8)
        assert torch.equal(
            restored_row, fake_quantize(row, scale.reshape(1), zero_point, INT8_STATIC.input_activations)
        )
        # Half a step, one more for the scale's rounding at code 127, and the rounding of the product itself.
        assert float((row - restored_row).abs().max()) <= float(scale) * 1.1


def test_quantizing_a_weight_leaves_the_original() -> None:
    weight = normal(4, 8)
    before = weight.clone()
    quantize_weight(weight, INT8_PER_CHANNEL)
    assert torch.equal(weight, before)


def test_an_all_zero_output_channel_stays_zero() -> None:
    weight = normal(4, 8)
    weight[2] = 0
    assert torch.equal(quantize_weight(weight, INT8_PER_CHANNEL)[2], weight[2])


@pytest.mark.parametrize("shape", [(7, 12), (1, 12), (12, 12)])
def test_the_dynamic_quantizer_gives_every_token_of_a_2d_input_its_own_scale(shape: tuple[int, int]) -> None:
    """Linearized experts see flattened tokens, [tokens, channels]."""
    x = normal(*shape)
    quantizer = input_quantizer(INT8_DYNAMIC, None, CPU)
    assert quantizer is not None
    output = quantizer(x)
    assert output.shape == x.shape
    for row, restored in zip(x, output, strict=True):
        scale = (row.abs().max() / 127.5).reshape(1)
        zero_point = torch.zeros(1, dtype=torch.int8)
        assert torch.equal(restored, fake_quantize(row, scale, zero_point, INT8_STATIC.input_activations))


def test_the_dynamic_quantizer_treats_2d_and_3d_inputs_alike() -> None:
    x = normal(6, 12)
    quantizer = input_quantizer(INT8_DYNAMIC, None, CPU)
    assert quantizer is not None
    assert torch.equal(quantizer(x), quantizer(x[None])[0])
    assert torch.equal(quantizer(x.reshape(2, 3, 12)).reshape(6, 12), quantizer(x))


def test_the_static_quantizer_uses_the_given_scale_for_every_token() -> None:
    qparams = QParams(
        min=-2, max=2, scale=torch.tensor([0.5]).bfloat16(), zero_point=torch.tensor([0], dtype=torch.int8)
    )
    quantizer = input_quantizer(INT8_STATIC, qparams, CPU)
    assert quantizer is not None
    x = torch.tensor([[[0.2, 0.3, -0.74, 1000.0, -1000.0]]]).bfloat16()
    assert quantizer(x).tolist() == [[[0.0, 0.5, -0.5, 63.5, -64.0]]]


@pytest.mark.parametrize("scheme", [INT8_STATIC, INT8_DYNAMIC])
def test_a_float32_input_in_a_bfloat16_model_is_quantized_in_float32(scheme: Scheme) -> None:
    """As a router kept in float32 reads it: its scale is that of compressed_tensors in float32, not the model's."""
    low, high = -1.7310585, 2.3456789
    rounded = torch.tensor([high / 127.5]).bfloat16()
    qparams = QParams(min=low, max=high, scale=rounded, zero_point=torch.zeros(1, dtype=torch.int8))
    quantizer = input_quantizer(scheme, qparams if scheme.static else None, CPU)
    assert quantizer is not None
    x = normal(5, 16).float() / 3
    output = quantizer(x)
    assert output.dtype == torch.float32
    numbers = x.double().numpy()
    amax = np.float32(high) if scheme.static else np.abs(numbers).max(1, keepdims=True)
    scale = np.float32(amax) / np.float32(127.5)
    codes = np.clip(np.round(x.numpy() / scale), -128, 127)
    np.testing.assert_allclose(output.numpy(), codes * scale, rtol=1e-6)
    narrow = quantizer(x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(quantizer(x), output), "one quantizer serves both dtypes"


def test_a_scheme_without_activations_quantizes_none() -> None:
    assert input_quantizer(WEIGHTS_ONLY, None, CPU) is None
    assert input_quantizer(NOTHING, None, CPU) is None


def test_a_static_scheme_without_range_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="quantization parameters"):
        input_quantizer(INT8_STATIC, None, CPU)


def test_members_of_a_group_share_one_quantized_input() -> None:
    quantizer = input_quantizer(INT8_DYNAMIC, None, CPU)
    assert quantizer is not None
    x, y = normal(3, 4), normal(3, 4) + 1
    first = quantizer(x)
    assert quantizer(x) is first
    assert not torch.equal(quantizer(y), first)
    assert torch.equal(quantizer(x), first)


# The context ---------------------------------------------------------------------------------------------------------


def test_quantizers_keep_no_input_alive() -> None:
    qparams = QParams(min=-1, max=1, scale=torch.tensor([1 / 127.5]), zero_point=torch.zeros(1, dtype=torch.int8))
    for scheme, ranges in ((INT8_DYNAMIC, None), (INT8_STATIC, qparams)):
        quantizer = input_quantizer(scheme, ranges, CPU)
        assert quantizer is not None
        first, second = normal(3, 8), normal(5, 8)
        input_ref, output_ref = weakref.ref(first), weakref.ref(quantizer(first))
        assert output_ref() is not None
        del first
        assert (input_ref(), output_ref()) == (None, None)
        assert quantizer(second) is quantizer(second)
        assert quantizer(second).shape == second.shape


def test_within_the_context_members_use_the_given_weights_and_inputs(
    tiny_loaded: LoadedModel, architecture: Architecture
) -> None:
    group = next(g for g in architecture.groups if g.name == "layers.1.mlp.gate_up_proj")
    model = tiny_loaded.model
    x = normal(1, 5, 64)
    changed = {member: model.get_submodule(member).weight * 2 for member in group.members}
    linear = model.get_submodule(group.members[1])
    other = model.get_submodule("model.layers.1.mlp.down_proj").weight
    with torch.no_grad():
        plain = linear(x)
        with quantized(model, [group], changed, {group.name: lambda x: x * 4}):
            assert torch.equal(linear(x), plain * 8)
            assert model.get_submodule("model.layers.1.mlp.down_proj").weight is other
        assert torch.equal(linear(x), plain)


@pytest.mark.parametrize("fails", [False, True])
def test_after_the_context_everything_is_bit_for_bit_as_before(
    tiny_loaded: LoadedModel, architecture: Architecture, fails: bool
) -> None:
    model = tiny_loaded.model
    before, count = weight_bytes(model), hooks(model)
    objects = {name: parameter for name, parameter in model.named_parameters()}  # noqa: C416
    weights = {
        member: quantize_weight(model.get_submodule(member).weight, INT8_PER_CHANNEL)
        for group in architecture.groups
        for member in group.members
    }
    inputs = {group.name: input_quantizer(INT8_DYNAMIC, None, CPU) for group in architecture.groups}
    try:
        with quantized(model, architecture.groups, weights, inputs):
            assert weight_bytes(model) != before
            assert hooks(model) > count
            if fails:
                raise RuntimeError("in the middle")
    except RuntimeError:
        assert fails
    assert weight_bytes(model) == before
    assert hooks(model) == count
    assert all(parameter is objects[name] for name, parameter in model.named_parameters())


def test_a_tied_embedding_stays_as_it_is_while_the_output_projection_is_quantized() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert head.weight is embedding.weight
    before = embedding.weight.detach().clone()
    group = discover(model).groups[-1]
    assert group.name == "lm_head"
    changed = quantize_weight(head.weight.detach(), INT8_PER_CHANNEL)
    assert not torch.equal(changed, before)
    with quantized(model, [group], {"lm_head": changed}, {}):
        assert torch.equal(head.weight, changed)
        assert torch.equal(embedding.weight, before)
    assert head.weight is embedding.weight
    assert torch.equal(embedding.weight, before)
