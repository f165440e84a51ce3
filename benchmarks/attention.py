"""What attention takes in each way of computing its products: milliseconds on one thread, the least of several runs.

Fused: PyTorch's `scaled_dot_product_attention`, as most models run. Eager: both products and the softmax one by one, as
llm-compressor calibrates. The ways come in turn, so that a busy machine slows all of them.

    python benchmarks/attention.py [--dtype float16] [--heads 9] [--channels 64]
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING
from unittest import mock

import torch
import typer
from torch import Tensor, nn

from quantaudit.model.forward.float32_products import float32_products

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKENS = (128, 256, 512, 1024, 2048)
ROUNDS = 5


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention in one call."""
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention as transformers writes it out."""
    late = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu_(1)
    mask = torch.zeros(late.shape, dtype=q.dtype).masked_fill_(late, torch.finfo(q.dtype).min)
    scores = q @ k.mT * q.shape[-1] ** -0.5 + mask
    return nn.functional.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v


@contextmanager
def without_mkl(dtype: torch.dtype) -> Iterator[None]:
    """Products in float32, where PyTorch has no MKL."""
    with mock.patch.object(torch.backends.mkl, "is_available", return_value=False), float32_products(dtype):
        yield


def milliseconds(
    attention: Callable[..., Tensor], inputs: list[Tensor], context: AbstractContextManager[None]
) -> float:
    """One run."""
    with context:
        start = perf_counter()
        attention(*inputs)
        return 1e3 * (perf_counter() - start)


@torch.no_grad()
def main(dtype: str = "bfloat16", heads: int = 9, channels: int = 64) -> None:
    """Print a row for each length, and a column for each way."""
    torch.set_num_threads(1)
    half = getattr(torch, dtype)
    ways: dict[str, tuple[Callable[..., Tensor], Callable[[], AbstractContextManager[None]]]] = {
        "fused, native": (fused, nullcontext),
        "fused, float32": (fused, lambda: float32_products(half)),
        "without MKL": (fused, lambda: without_mkl(half)),
        "eager, native": (eager, nullcontext),
        "eager, float32": (eager, lambda: float32_products(half)),
    }
    print("tokens" + "".join(f"{name:>16}" for name in ways))
    for tokens in TOKENS:
        inputs = [torch.randn(1, heads, tokens, channels).to(half) for _ in range(3)]
        rounds = [[milliseconds(run, inputs, context()) for run, context in ways.values()] for _ in range(ROUNDS + 1)]
        least = [min(times) for times in zip(*rounds[1:], strict=True)]  # the first warms up
        print(f"{tokens:6}" + "".join(f"{time:16.1f}" for time in least), flush=True)


if __name__ == "__main__":
    typer.run(main)
