"""Products in float32 against float64, kernel by kernel, and that nothing else changes, during or after."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from quantaudit.model.forward import float32_products as module
from quantaudit.model.forward.float32_products import Float32Products, float32_products, in_float32, make_copies

HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(params=HALF, ids=["bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["native", "float32", "float32 in pieces"])
def arithmetic(request: pytest.FixtureRequest, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if "pieces" in request.param:
        monkeypatch.setattr(module, "PIECE_BYTES", 1 << 10)
        monkeypatch.setattr(module, "STEP_BYTES", 1 << 10)
    with nullcontext() if request.param == "native" else float32_products(dtype):
        yield request.param


def half_step(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance between neighbors of x, float64, in a 16-bit dtype."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp_min(info.smallest_normal)).exponent - 1
    return torch.ldexp(torch.full_like(x, info.eps / 2), exponent)


def assert_rounded_once(actual: Tensor, exact: Tensor, magnitude: Tensor, terms: int) -> None:
    """found: what was computed. exact: float64. magnitude: the sum of the terms' magnitudes, whose float32 rounding is
    allowed for.
    """
    error = (actual.double() - exact).abs()
    allowed = half_step(exact, actual.dtype) + terms * 2.0**-24 * magnitude
    assert (error <= allowed).all(), float((error / allowed).max())


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


Case = tuple[Callable[..., Tensor], list[Tensor]]


def matrix_cases(dtype: torch.dtype) -> dict[str, Case]:
    """Each a function of tensors and what it is given: computed in 16 bits, in float64, and of magnitudes."""

    def x(*shape: int, seed: int = 0) -> Tensor:
        return random(*shape, dtype=dtype, seed=seed)

    w, bias = x(48, 96, seed=1), x(48, seed=2)
    linear = functional.linear
    return {
        "linear": (linear, [x(7, 96), w]),
        "linear, bias": (linear, [x(7, 96), w, bias]),
        "linear, batched": (linear, [x(2, 7, 96), w]),
        "linear, batched, bias": (linear, [x(2, 7, 96), w, bias]),
        "linear, one token": (linear, [x(1, 1, 96), w, bias]),
        "linear, no token": (linear, [x(0, 96), w, bias]),
        "linear, strided": (linear, [x(7, 192)[:, ::2], w]),
        "linear, transposed input": (linear, [x(96, 7).T, w, bias]),
        "linear, transposed weight": (linear, [x(7, 96), x(96, 48, seed=1).T, bias]),
        "linear, part of a weight": (linear, [x(7, 96), x(48, 200, seed=1)[:, 50:146]]),
        "linear, rows of a weight": (linear, [x(7, 96), x(100, 96, seed=1)[20:68]]),
        "parameter": (linear, [x(2, 7, 96), nn.Parameter(w), nn.Parameter(bias)]),
        "Conv1D": (torch.addmm, [bias, x(7, 96), nn.Parameter(x(96, 48, seed=1))]),
        "addmm, column": (torch.addmm, [x(7, 1, seed=2), x(7, 96), w.T]),
        "addmm, scalar": (torch.addmm, [x(1, seed=2)[0], x(7, 96), w.T]),
        "@": (lambda a, b: a @ b, [x(7, 96), w.T]),
        "@, four axes": (torch.matmul, [x(2, 3, 7, 96), x(2, 3, 96, 11, seed=1)]),
        "@, one weight for all": (torch.matmul, [x(2, 3, 7, 96), w.T]),
        "@, transposed": (lambda a, b: a @ b.mT, [x(2, 3, 7, 96), x(2, 3, 11, 96, seed=1)]),
        "bmm": (torch.bmm, [x(5, 7, 96), x(5, 96, 11, seed=1)]),
        "bmm, parameter": (torch.bmm, [x(5, 7, 96), nn.Parameter(x(5, 96, 11, seed=1))]),
        "baddbmm": (torch.baddbmm, [x(5, 1, 11, seed=2), x(5, 7, 96), x(5, 96, 11, seed=1)]),
        "einsum": (lambda a, b: torch.einsum("btc,btd->bcd", a, b), [x(3, 40, 6), x(3, 40, 7, seed=1)]),
        "conv1d": (functional.conv1d, [x(2, 8, 20), x(12, 8, 4, seed=1), x(12, seed=2)]),
        "conv1d, each channel": (lambda a, b: functional.conv1d(a, b, groups=8), [x(2, 8, 20), x(8, 1, 4, seed=1)]),
        "conv2d": (lambda a, b: functional.conv2d(a, b, stride=2), [x(2, 3, 14, 14), x(8, 3, 4, 4, seed=1)]),
        "conv3d": (functional.conv3d, [x(1, 3, 4, 8, 8), nn.Parameter(x(8, 3, 2, 4, 4, seed=1))]),
    }


@pytest.mark.parametrize("name", matrix_cases(torch.bfloat16))
@torch.no_grad()
def test_products_are_rounded_once(name: str, dtype: torch.dtype, arithmetic: str) -> None:
    run, given = matrix_cases(dtype)[name]
    actual = run(*given)
    assert actual.dtype == dtype
    exact = run(*(x.detach().double() for x in given))
    magnitude = run(*(x.detach().double().abs() for x in given))
    assert_rounded_once(actual, exact, magnitude, terms=128)


@torch.no_grad()
def test_a_bias_on_other_layouts_costs_what_pytorch_makes_of_it(dtype: torch.dtype, arithmetic: str) -> None:
    """Where PyTorch adds the bias by itself, the product is rounded, and the sum."""
    x, w, bias = random(7, 2, 3, 96, dtype=dtype).transpose(0, 1), random(48, 96, dtype=dtype), random(48, dtype=dtype)
    product = x.double() @ w.double().T
    actual = functional.linear(x, w, bias)
    allowed = half_step(product, dtype) + half_step(product.abs() + bias.double().abs(), dtype) + 1e-4
    assert ((actual.double() - (product + bias.double())).abs() <= allowed).all()


@pytest.mark.parametrize("tokens", [17, 300])
@pytest.mark.parametrize("mask", [None, "causal", "float", "bool"])
@pytest.mark.parametrize("arithmetic", ["native", "float32", "float32 without MKL"])
@torch.no_grad()
def test_fused_attention_rounds_probabilities_and_the_result(
    mask: str | None, tokens: int, dtype: torch.dtype, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each probability is off by half a step at most, natively too; then the result is rounded."""
    q, k, v = (random(2, 3, tokens, 16, dtype=dtype, seed=seed) for seed in range(3))
    given: dict[str, Any] = {"is_causal": mask == "causal"}
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if mask == "bool":
        given["attn_mask"] = causal
    elif mask == "float":
        given["attn_mask"] = torch.zeros(tokens, tokens, dtype=dtype).masked_fill_(~causal, -100.0)
    wide = {key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in given.items()}
    exact = functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), **wide)
    magnitude = functional.scaled_dot_product_attention(q.double(), k.double(), v.double().abs(), **wide)
    if arithmetic == "float32 without MKL":
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    with nullcontext() if arithmetic == "native" else float32_products(dtype):
        actual = functional.scaled_dot_product_attention(q, k, v, **given)
    rounded = torch.finfo(dtype).eps / 2 * magnitude
    allowed = half_step(exact.abs() + rounded, dtype) + rounded + 512 * 2.0**-24 * magnitude
    assert ((actual.double() - exact).abs() <= allowed).all()


@torch.no_grad()
def test_queries_that_see_nothing_and_shared_heads_are_as_in_pytorch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    q, k, v = random(1, 4, 6, 8, dtype=dtype), random(1, 2, 6, 8, dtype=dtype), random(1, 2, 6, 8, dtype=dtype)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[2] = False
    actual = []
    for context in (nullcontext(), float32_products(dtype)):
        with context:
            actual.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True))
    assert torch.equal(actual[0][:, :, 2], actual[1][:, :, 2])
    assert torch.allclose(actual[0].float(), actual[1].float(), atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_the_way_back_is_rounded_as_the_native_one(mask: str, dtype: torch.dtype) -> None:
    """Gradients of Linears, convolutions and attention, against float64 ones: within a few roundings on their way."""

    def gradients(precision: torch.dtype) -> list[Tensor]:
        x = random(2, 20, 32, dtype=dtype).to(precision).requires_grad_()
        w = random(32, 32, dtype=dtype, seed=1).to(precision) / 4
        kernel = random(32, 1, 3, dtype=dtype, seed=2).to(precision)
        mixed = functional.conv1d(functional.linear(x, w).mT, kernel, padding=1, groups=32).mT
        q = mixed.reshape(2, 20, 2, 16).transpose(1, 2)
        out = functional.scaled_dot_product_attention(q, q / 2, q, is_causal=mask == "causal")
        out.backward(random(2, 2, 20, 16, dtype=dtype, seed=3).to(precision))
        assert x.grad is not None
        return [out.detach().double(), x.grad.double()]

    exact = gradients(torch.float64)
    with float32_products(dtype):
        actual = gradients(dtype)
    for one, other in zip(actual, exact, strict=True):
        assert (one - other).norm() / other.norm() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("draws", [1, 2])
def test_blocks_that_run_again_on_the_way_back_do_so_in_the_same_arithmetic(draws: int) -> None:
    block = nn.Sequential(nn.Linear(64, 96), nn.GELU(), Conv1D(64, 96)).to(torch.bfloat16).requires_grad_(False)

    def gradient(again: bool) -> Tensor:
        x = random(9, 64, dtype=torch.bfloat16).requires_grad_()
        y = checkpoint(block, x.clone(), use_reentrant=False) if again else block(x.clone())
        for draw in range(draws):
            y.backward(torch.ones_like(y), retain_graph=draw + 1 < draws)
        assert x.grad is not None
        return x.grad

    with float32_products(torch.bfloat16):
        assert torch.equal(gradient(True), gradient(False))


@torch.no_grad()
def test_grouped_products_are_those_of_each_group(dtype: torch.dtype) -> None:
    a, b = random(20, 32, dtype=dtype), nn.Parameter(random(4, 32, 16, dtype=dtype, seed=1))
    ends = [6, 6, 15, 20]
    with float32_products(dtype):
        actual = torch._grouped_mm(a, b, offs=torch.tensor(ends, dtype=torch.int32))
        for matrix, start, end in zip(b, [0, *ends], ends, strict=False):
            assert torch.equal(actual[start:end], a[start:end] @ matrix)


@torch.no_grad()
def test_results_may_go_into_tensors_that_are_there(dtype: torch.dtype) -> None:
    a, b, c = random(5, 8, dtype=dtype), random(8, 6, dtype=dtype, seed=1), random(5, 6, dtype=dtype, seed=2)
    with float32_products(dtype):
        out = torch.empty(0, dtype=dtype)
        assert torch.mm(a, b, out=out) is out
        assert torch.equal(out, a @ b)
        assert torch.equal(c.clone().addmm_(a, b, beta=0.5, alpha=2), torch.addmm(c, a, b, beta=0.5, alpha=2))
        stacked = c.clone()[None].baddbmm_(a[None], b[None], alpha=2)
        assert torch.equal(stacked[0], torch.addmm(c, a, b, alpha=2))


def test_errors_are_pytorchs_own(dtype: torch.dtype) -> None:
    with float32_products(dtype):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            random(3, 4, dtype=dtype) @ random(5, 6, dtype=dtype)
        with pytest.raises(RuntimeError, match="dtype"):
            random(3, 4, dtype=dtype) @ random(4, 6, dtype=torch.float32)


@torch.no_grad()
def test_other_dtypes_and_devices_are_not_touched() -> None:
    wide, half = random(9, 64, dtype=torch.float32), random(9, 64, dtype=torch.float16)
    before = [wide @ wide.T, wide.double() @ wide.double().T, half @ half.T]
    with float32_products(torch.bfloat16):
        after = [wide @ wide.T, wide.double() @ wide.double().T, half @ half.T]
        meta = torch.empty(3, 4, dtype=torch.bfloat16, device="meta")
        assert (meta @ meta.T).shape == (3, 3)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def kernels() -> dict[str, str]:
    """What PyTorch's dispatcher has for every operator that is exchanged."""
    return {name: torch._C._dispatch_dump(f"aten::{name}") for name in Float32Products().kernels}


def test_pytorchs_kernels_are_back_whatever_happens() -> None:
    x, before = random(9, 64, dtype=torch.bfloat16), kernels()
    product = x @ x.T
    with float32_products(torch.bfloat16):
        assert kernels() != before
    with pytest.raises(KeyError), float32_products(torch.bfloat16):
        raise KeyError
    assert kernels() == before
    with float32_products(torch.bfloat16), float32_products(torch.float16), float32_products(torch.bfloat16):
        assert in_float32(torch.bfloat16)
        assert in_float32(torch.float16)
    assert not in_float32(torch.bfloat16)
    assert kernels() == before
    assert torch.equal(x @ x.T, product)


def test_an_inner_context_leaves_the_outer_one_alone() -> None:
    with float32_products(torch.bfloat16):
        exchanged = kernels()
        with float32_products(torch.bfloat16), float32_products(torch.float16):
            pass
        assert kernels() == exchanged
        assert in_float32(torch.bfloat16)
        assert not in_float32(torch.float16)


def test_threads_share_one_exchange() -> None:
    x, before = random(64, 64, dtype=torch.bfloat16), kernels()
    wanted, actual = (x.float() @ x.float()).to(torch.bfloat16), list[bool]()

    def work() -> None:
        for _ in range(50):
            with float32_products(torch.bfloat16):
                actual.append(torch.equal(x @ x, wanted))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(actual) == 200
    assert all(actual)
    assert kernels() == before


@torch.no_grad()
def test_copies_that_are_made_beforehand_are_those_that_products_use(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32, dtype=torch.bfloat16), torch.nn.Linear(32, 8))
    make_copies(model)  # outside of all contexts there is nothing to make
    with float32_products(torch.bfloat16):
        make_copies(model)
        products = module._EXCHANGE.products
        assert products is not None
        made = products.weights.bytes
        assert made == 4 * 64 * 32
        model[0](torch.ones(3, 64, dtype=torch.bfloat16))
        assert products.weights.bytes == made
    with float32_products(torch.bfloat16), monkeypatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", 100)
        make_copies(model)
        products = module._EXCHANGE.products
        assert products is not None
        assert products.weights.bytes == 0


def test_code_that_is_traced_contains_no_casts() -> None:
    linear = nn.Linear(8, 4).to(torch.bfloat16)
    with float32_products(torch.bfloat16):
        traced = torch.fx.symbolic_trace(linear)
        x = random(3, 8, dtype=torch.bfloat16)
        assert torch.equal(traced(x), linear(x))
    assert [node.op for node in traced.graph.nodes].count("call_method") == 0
