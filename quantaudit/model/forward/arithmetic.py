"""How products of a model's dtype are computed: natively, or in float32 with one rounding, as accelerators do.

Where a processor has no instruction for 16-bit products, PyTorch's own kernels take many times as long as float32.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantaudit.model.forward.float32_products import WEIGHT_BYTES, float32_products, in_float32

if TYPE_CHECKING:
    from quantaudit.common.choices import ArithmeticChoice
    from quantaudit.provenance import Arithmetic

HALF = (torch.bfloat16, torch.float16)
"""Dtypes whose products may be computed in float32."""

NATIVE_BELOW, SLOW_ABOVE = 1.25, 2.0
"""How long a 16-bit product takes, in float32 products: below, it is native; above, it is not; between, PyTorch's word
counts. Native ones take .2 to .8, others 4 to 30."""
_SHAPE = (32, 512, 512)
_ROUNDS = 6


def choose_arithmetic(choice: ArithmeticChoice, model: nn.Module) -> Arithmetic:
    """How to compute products of this model: natively on accelerators, in float32, and wherever it is fast."""
    parameter = next(model.parameters())
    return choose_for(choice, parameter.dtype, parameter.device)


def choose_for(choice: ArithmeticChoice, dtype: torch.dtype, device: torch.device) -> Arithmetic:
    """The same of a model that is in this dtype and on this device, or will be."""
    if device.type != "cpu" or dtype not in HALF:
        return "native"
    if choice == "auto":
        return "native" if native_products(dtype) else "float32"
    return choice


def computed_in(
    arithmetic: Arithmetic, model: nn.Module, *, weight_bytes: int = WEIGHT_BYTES
) -> AbstractContextManager[None]:
    """A context in which the model's products are computed this way. weight_bytes: as for `float32_products`."""
    if arithmetic == "native":
        return nullcontext()
    return float32_products(next(model.parameters()).dtype, weight_bytes=weight_bytes)


def arithmetic_now(model: nn.Module) -> Arithmetic:
    """How products of this model are computed at this moment."""
    parameter = next(model.parameters())
    return "float32" if parameter.device.type == "cpu" and in_float32(parameter.dtype) else "native"


def is_slow(model: nn.Module) -> bool:
    """Whether native products of this model take longer than those in float32 would."""
    parameter = next(model.parameters())
    return parameter.device.type == "cpu" and parameter.dtype in HALF and not native_products(parameter.dtype)


@cache
def native_products(dtype: torch.dtype) -> bool:
    """Whether this processor computes products of a 16-bit dtype about as fast as those of float32, or faster.

    Timed, as kernels may be limited below what the processor has (`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`); PyTorch
    is asked where time does not tell. Takes some ten milliseconds, once for a process and dtype.
    """
    ratio = _time_ratio(dtype)
    return ratio < NATIVE_BELOW or (ratio < SLOW_ABOVE and _pytorch_supports(dtype))


def _time_ratio(dtype: torch.dtype) -> float:
    """What a product of this dtype takes, in float32 products: the least of several, one in turn with the other.

    Processor time of a single thread: on a busy machine, threads that wait for each other take longer than any product.
    """
    m, k, n = _SHAPE
    a, b = torch.ones(m, k), torch.ones(n, k)
    pairs = [(a, b), (a.to(dtype), b.to(dtype))]
    with _one_thread(), torch.no_grad():
        times = [[_seconds(x, w) for x, w in pairs] for _ in range(_ROUNDS)]
    wide, half = (min(column) for column in zip(*times[1:], strict=True))  # the first warms up
    ratio: float = half / max(wide, 1e-9)
    return ratio


def _seconds(x: Tensor, weight: Tensor) -> float:
    start = time.thread_time()
    nn.functional.linear(x, weight)
    return time.thread_time() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pytorch_supports(dtype: torch.dtype) -> bool:
    """What PyTorch says of the processor, whatever its kernels are limited to."""
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is not None and bool(supported())
