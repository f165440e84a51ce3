"""Products of 16-bit tensors in float32, rounded once: PyTorch's kernels for processors, exchanged for a while.

The kernels are exchanged in PyTorch's dispatcher (`torch.library`), below autograd. So whatever leads to a product does
to these: Linears, `@`, einsum, attention, backward passes, checkpointed blocks that run again, code that is traced. No
other operation is touched, and none becomes slower.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import Library, get_kernel

from quantaudit.model.forward.rounded_attention import rounded_attention
from quantaudit.model.forward.wide_weights import WideWeights, is_parameter

WEIGHT_BYTES = 3 << 28
"""What float32 copies of weights may take; beyond it, weights are converted whenever they are used."""

PIECE_BYTES = 1 << 24
"""A larger factor is converted and multiplied piece by piece: its float32 form stays in the cache of a processor, and
the logits' never exists as a whole. Pieces depend on shapes alone, and roundings with them."""

STEP_BYTES = 1 << 22
"""Matrices of a batch are multiplied so many at a time: what is float32 between two roundings stays in the cache."""


def native_attention(dtype: torch.dtype) -> bool:
    """Whether PyTorch's fused attention of a dtype takes no longer than float32's, on any processor.

    Its products go to MKL, which multiplies bfloat16 with float32 sums on processors without an instruction for it too.
    """
    return dtype == torch.bfloat16 and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]


class Float32Products:
    """The kernels, by name of the operator they stand for, and PyTorch's own, which they use in float32.

    dtypes: those whose products are computed in float32. Tensors of other dtypes go to PyTorch's kernels. Each kernel
    takes the dispatcher's keys, then the operator's own arguments.
    """

    def __init__(self) -> None:
        self.dtypes: frozenset[torch.dtype] = frozenset()
        self.weights = WideWeights(0)
        self.kernels: dict[str, Callable[..., Any]] = {
            "mm": self.mm,
            "addmm": self.addmm,
            "bmm": self.bmm,
            "baddbmm": self.baddbmm,
            "convolution": self.convolution,
            "convolution_backward": self.convolution_backward,
            "_scaled_dot_product_flash_attention_for_cpu": self.attention,
            "_scaled_dot_product_flash_attention_for_cpu_backward": self.attention_backward,
            "_grouped_mm": self.grouped_mm,
        }
        for name in ("mm", "addmm", "bmm", "baddbmm"):
            self.kernels[f"{name}.out"] = _into(self.kernels[name])
        for name in ("addmm", "baddbmm"):
            self.kernels[f"{name}_"] = _in_place(self.kernels[name])
        self._native = {name: get_kernel(f"aten::{name}", "CPU") for name in self.kernels}

    def mm(self, keys: Any, a_MK: Tensor, b_KN: Tensor) -> Tensor:
        """a·b."""
        if not self._is_ours(a_MK, b_KN):
            return self._tensor("mm", keys, a_MK, b_KN)
        return self._product(keys, a_MK, b_KN)

    def addmm(self, keys: Any, c: Tensor, a_MK: Tensor, b_KN: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        """β·c + α·a·b, with one rounding."""
        if not self._is_ours(a_MK, b_KN):
            return self._tensor("addmm", keys, c, a_MK, b_KN, beta=beta, alpha=alpha)
        return self._product(keys, a_MK, b_KN, c, beta=beta, alpha=alpha)

    def bmm(self, keys: Any, a_BMK: Tensor, b_BKN: Tensor) -> Tensor:
        """a·b for each matrix of a batch."""
        if not self._is_ours(a_BMK, b_BKN):
            return self._tensor("bmm", keys, a_BMK, b_BKN)
        if is_parameter(b_BKN) and len(a_BMK) == len(b_BKN):
            parts = [self._product(keys, a_MK, b_KN) for a_MK, b_KN in zip(a_BMK, b_BKN, strict=True)]
            return torch.stack(parts) if parts else a_BMK.new_empty((0, a_BMK.shape[1], b_BKN.shape[2]))
        return self._batched(lambda a, b: self._tensor("bmm", keys, a.float(), b.float()), a_BMK, b_BKN)

    def baddbmm(
        self, keys: Any, c: Tensor, a_BMK: Tensor, b_BKN: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        """β·c + α·a·b for each matrix of a batch, with one rounding."""
        if not self._is_ours(a_BMK, b_BKN):
            return self._tensor("baddbmm", keys, c, a_BMK, b_BKN, beta=beta, alpha=alpha)

        def product(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            return self._tensor("baddbmm", keys, c.float(), a.float(), b.float(), beta=beta, alpha=alpha)

        shape = (len(a_BMK), a_BMK.shape[1], b_BKN.shape[2])
        return self._batched(product, a_BMK, b_BKN, c.expand(shape))

    def convolution(self, keys: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        """Convolutions of any number of axes, transposed ones too."""
        if not self._is_ours(x, weight):
            return self._tensor("convolution", keys, x, weight, bias, *rest)
        wide = self._tensor("convolution", keys, x.float(), self.weights.of(weight), _wide(bias), *rest)
        return wide.to(x.dtype)

    def convolution_backward(self, keys: Any, gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
        """Gradients with respect to input, weight and bias, each as far as it is asked for."""
        if not self._is_ours(x, weight):
            return self._run("convolution_backward", keys, gradient, x, weight, *rest)
        result = self._run("convolution_backward", keys, gradient.float(), x.float(), self.weights.of(weight), *rest)
        return tuple(None if part is None else part.to(x.dtype) for part in result)

    def attention(
        self, keys: Any, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **named: Any
    ) -> Any:
        """Fused attention: output, and the logarithm of the sum of exponentials, which is float32 in any case.

        Both ways round at the same two places, and differ in the order of float32 sums.
        """
        if dropout_p or not self._is_ours(q, k) or native_attention(q.dtype):
            name = "_scaled_dot_product_flash_attention_for_cpu"
            return self._run(name, keys, q, k, v, dropout_p, is_causal, **named)
        return rounded_attention(q, k, v, causal=is_causal, mask=named.get("attn_mask"), scale=named.get("scale"))

    def attention_backward(
        self, keys: Any, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, *rest: Any, **named: Any
    ) -> Any:
        """Gradients with respect to queries, keys and values."""
        name = "_scaled_dot_product_flash_attention_for_cpu_backward"
        given = (gradient, q, k, v, output)
        if not self._is_ours(q, k):
            return self._run(name, keys, *given, *rest, **named)
        named["attn_mask"] = _wide(named.get("attn_mask"))
        result = self._run(name, keys, *(x.float() for x in given), *rest, **named)
        return tuple(part.to(q.dtype) for part in result)

    def grouped_mm(
        self,
        keys: Any,
        a: Tensor,
        b: Tensor,
        offs: Tensor | None = None,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rows of a, [rows, in], in groups that end at `offs`, each with a matrix of its own from b, [groups, in, out].

        That is how experts are run; other forms stay PyTorch's.
        """
        forms = a.ndim == 2 and b.ndim == 3 and offs is not None and bias is None
        if not (self._is_ours(a, b) and forms and out_dtype in (None, a.dtype)):
            return self._tensor("_grouped_mm", keys, a, b, offs, bias, out_dtype)
        out, start = a.new_zeros((len(a), b.shape[2])), 0
        for matrix, end in zip(b, offs.tolist(), strict=True):  # type: ignore[union-attr]
            if end > start:
                out[start:end] = self._product(keys, a[start:end], matrix)
            start = end
        return out

    def _is_ours(self, a: Tensor, b: Tensor) -> bool:
        return a.dtype in self.dtypes and b.dtype == a.dtype

    def _run(self, name: str, keys: Any, *args: Any, **named: Any) -> Any:
        """PyTorch's own kernel."""
        return self._native[name].call_boxed(keys, *args, **named)

    def _tensor(self, name: str, keys: Any, *args: Any, **named: Any) -> Tensor:
        """The same of kernels that return one tensor."""
        result: Tensor = self._run(name, keys, *args, **named)
        return result

    def _product(
        self, keys: Any, a_MK: Tensor, b_KN: Tensor, c: Tensor | None = None, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        """β·c + α·a·b in float32, rounded to the dtype of a."""

        def gemm(a: Tensor, b: Tensor, c: Tensor | None, beta: float = beta) -> Tensor:
            wide: Tensor = (
                self._run("mm", keys, a.float(), self.weights.of(b))
                if c is None
                else self._run("addmm", keys, c.float(), a.float(), self.weights.of(b), beta=beta, alpha=alpha)
            )
            return wide

        (K, N), M = b_KN.shape, len(a_MK)
        if 4 * K * N <= PIECE_BYTES or a_MK.shape[1] != K:
            return gemm(a_MK, b_KN, c).to(a_MK.dtype)
        c_MN = None if c is None else c.expand(M, N)
        if b_KN.stride(0) == 1:  # a Linear's weight: its rows are columns here
            out, a_wide = a_MK.new_empty((M, N)), a_MK.float()
            for part in _pieces(N, K):
                out[:, part] = gemm(a_wide, b_KN[:, part], None if c_MN is None else c_MN[:, part])
            return out
        total, first = c_MN, beta
        for part in _pieces(K, N):
            total, first = gemm(a_MK[:, part], b_KN[part], total, first), 1
        return total.to(a_MK.dtype)  # type: ignore[union-attr]

    def _batched(self, product: Callable[..., Tensor], *factors: Tensor) -> Tensor:
        """The product of a few matrices at a time, rounded."""
        a, b = factors[:2]
        one = 4 * (a[0].numel() + b[0].numel() + a.shape[1] * b.shape[2]) if len(a) else 0
        step = max(1, STEP_BYTES // max(one, 1))
        if step >= len(a) or len(a) != len(b):
            return product(*factors).to(a.dtype)
        out = a.new_empty((len(a), a.shape[1], b.shape[2]))
        for start in range(0, len(a), step):
            out[start : start + step] = product(*(factor[start : start + step] for factor in factors))
        return out


def _pieces(rows: int, width: int) -> Iterator[slice]:
    """Rows of a matrix, as many at a time as fit."""
    step = max(1, PIECE_BYTES // (4 * width))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _wide(x: Tensor | None) -> Tensor | None:
    """In float32 where it is a number: masks may be boolean."""
    return x.float() if x is not None and x.is_floating_point() else x


def _into(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A kernel whose result goes into a tensor that the caller gives."""

    def into(keys: Any, *args: Any, out: Tensor, **named: Any) -> Tensor:
        result = kernel(keys, *args, **named)
        if out.shape != result.shape:
            out.resize_(result.shape)
        return out.copy_(result)

    return into


def _in_place(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A kernel whose result goes into its first argument."""
    return lambda keys, first, *args, **named: first.copy_(kernel(keys, first, *args, **named))


class _Exchange:
    """Which dtypes are computed in float32 now, for the whole process: threads and nested contexts add up."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entered: list[tuple[torch.dtype, int]] = []
        self._library: Any = None
        self.products: Float32Products | None = None

    def enter(self, entry: tuple[torch.dtype, int]) -> None:
        """Serve one more context. entry: its dtype, and the bytes that copies of weights may take."""
        with self._lock:
            if self.products is None:
                products = Float32Products()
                self._library = _registered(products)
                self.products = products
            self._entered.append(entry)
            self._settle()

    def leave(self, entry: tuple[torch.dtype, int]) -> None:
        """The last one to leave puts PyTorch's kernels back."""
        with self._lock:
            self._entered.remove(entry)
            self._settle()
            if not self._entered:
                self._library._destroy()
                self._library = self.products = None

    def _settle(self) -> None:
        products: Any = self.products
        products.dtypes = frozenset(dtype for dtype, _ in self._entered)
        products.weights.budget = min((size for _, size in self._entered), default=0)

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether products of this dtype are computed in float32 now."""
        return any(dtype == entered for entered, _ in self._entered)


def _registered(products: Float32Products) -> Library:
    library = Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            # PyTorch says once that a kernel of its own is overridden: that is what is meant.
            warnings.filterwarnings("ignore", message=".*[Oo]verrid", category=UserWarning)
            for name, kernel in products.kernels.items():
                library.impl(name, kernel, "CPU", with_keyset=True)  # type: ignore[no-untyped-call]
    except BaseException:
        library._destroy()  # type: ignore[no-untyped-call]
        raise
    return library


_EXCHANGE = _Exchange()


@contextmanager
def float32_products(dtype: torch.dtype, *, weight_bytes: int = WEIGHT_BYTES) -> Iterator[None]:
    """Within the context, on processors, products of a 16-bit dtype are computed in float32 and rounded once.

    Holds for the whole process, until the last context ends; then PyTorch's own kernels are back. weight_bytes: what
    float32 copies of weights may take, the least of all contexts; 0 where weights may be written through `.data`.
    """
    entry = (dtype, weight_bytes)
    _EXCHANGE.enter(entry)
    try:
        yield
    finally:
        _EXCHANGE.leave(entry)


def make_copies(model: nn.Module) -> None:
    """Make the copies of its Linears' weights that are kept now: forks of this process then share them."""
    products = _EXCHANGE.products
    if products is None:
        return
    weights = (module.weight for module in model.modules() if isinstance(module, nn.Linear))
    for weight in weights:  # larger ones are multiplied piece by piece, and have a copy for each piece
        if weight.dtype in products.dtypes and 4 * weight.numel() <= PIECE_BYTES:
            products.weights.of(weight)


def in_float32(dtype: torch.dtype) -> bool:
    """Whether products of this dtype are computed in float32 now."""
    return _EXCHANGE.holds(dtype)
