"""What the tensors of a checkpoint hold, read one at a time: codes by scale group, scales, and plain tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_range
from numpy.typing import NDArray
from torch import Tensor

from quantaudit.conform.artifacts.records import DenseContents, OtherScale, QuantizedModule, WeightContents
from quantaudit.conform.artifacts.tensors import TensorSource
from quantaudit.conform.contract import GROUP_INDEX, GROUPED, Form
from quantaudit.model.weight_sketch import Sketcher, sketch_of

ROWS = 2048
"""Rows of a weight that are decoded at a time."""
WORDS = 8
"""Zero points, or words of packed ones, from which on it is no chance that all are equal."""
FEW_WORDS = 3
"""The same of words that hold as many zero points apart from the most common one."""
FULL = 0.97
"""Share of the grid's end that counts as its end: GPTQ moves the largest code of a channel by a few."""
_FLOATS = {8: (3, -6), 4: (1, 0)}
"""Bits of float codes → those of their mantissa, and their smallest exponent (E4M3, E2M1)."""
_EXPONENTS = (torch.uint8, torch.float8_e8m0fnu)


def scale_values(tensor: Tensor) -> NDArray[np.float64]:
    """Values of a scale, flat; E8M0 exponents decoded: 2^(e − 127), of which 255 is NaN (OCP Microscaling 1.0)."""
    if tensor.dtype not in _EXPONENTS:
        return tensor.double().numpy().reshape(-1)
    exponents = tensor.view(torch.uint8).double().numpy().reshape(-1)
    return np.where(exponents == 255, np.nan, np.exp2(exponents - 127))


def weight_contents(tensors: TensorSource, row: QuantizedModule) -> tuple[WeightContents, NDArray[np.bool_] | None]:
    """Statistics of a module's codes, and which entries of its scale are idle; None where the scale does not fit.

    The module's codes must have the shape and dtype of its contract.
    """
    args = row.scheme.weights
    assert args is not None
    leaf = "weight_packed" if "weight_packed" in row.forms else "weight"
    first, last = (float(end) for end in calculate_range(args, torch.device("cpu")))
    scale = _fitting(tensors, row, "weight_scale")
    zero = _zero_points(tensors, row, args)
    groups, lowest, highest, nonfinite = _Groups([], [], []), math.inf, -math.inf, 0
    width = _group_width(args, row.shape)
    ordered = GROUP_INDEX in row.forms
    steps = None if scale is None or ordered or (zero is None and not args.symmetric) else _steps(tensors, row, args)
    sketcher = Sketcher(row.shape[-1])
    for start, codes in _codes(tensors, row, leaf, args):
        bad = ~codes.isfinite()
        nonfinite += int(bad.sum())
        codes = codes.masked_fill(bad, 0.0)
        rounding = _rounding(codes, args)
        lowest, highest = min(lowest, float(codes.min())), max(highest, float(codes.max()))
        if zero is not None and not ordered:
            rows = zero[start : start + len(codes)] if len(zero) > 1 else zero
            codes = codes - rows.repeat_interleave(width, 1)[:, : codes.shape[1]]
        if steps is not None:
            sketcher.add(start, codes * steps(start, len(codes)))
        groups.add(codes, rounding, width)
    contents = WeightContents(
        module=row.module,
        tensor=f"{row.saved}.{leaf}",
        bits=args.num_bits,
        lowest=lowest,
        highest=highest,
        first=first,
        last=last,
        nonfinite=nonfinite,
        constant=_constant(tensors.tensor(f"{row.saved}.{leaf}")),
        sketch=sketcher.sketch(),
    )
    if scale is None or ordered:
        return contents, None
    return _against_scale(tensors, row, args, contents, scale, zero, groups)


class _Groups(NamedTuple):
    """By group of codes, each a list of [rows, groups along a row]: largest distance from the zero point, sum of the
    squares of these distances, and of what rounding to the codes is expected to have taken, in units of a step.
    """

    peaks: list[Tensor]
    energies: list[Tensor]
    losses: list[Tensor]

    def add(self, codes: Tensor, rounding: Tensor, width: int) -> None:
        """More rows. codes: [rows, in] less the zero point; rounding: mean square error of each; width: of a group."""

        def grouped(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values, (0, -values.shape[1] % width)).reshape(len(values), -1, width)

        self.peaks.append(grouped(codes).abs().amax(-1))
        self.energies.append(grouped(codes).double().square().sum(-1))
        self.losses.append(grouped(rounding).double().sum(-1))

    def by_scale(self, height: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The three by entry of the scale, flat, whose groups are so many rows high."""
        peaks, energies, losses = (_reduce_rows(torch.cat(part), height) for part in self)
        return (
            peaks.amax(1).double().numpy().reshape(-1),
            energies.sum(1).numpy().reshape(-1),
            losses.sum(1).numpy().reshape(-1),
        )


def _rounding(codes: Tensor, args: QuantizationArgs) -> Tensor:
    """Mean square error of rounding to each code, in units of a step: (distance to the next code)² / 12."""
    mantissa, smallest = _FLOATS.get(args.num_bits, (0, 0))
    if str(getattr(args.type, "value", args.type)) != "float" or not mantissa:
        return torch.full_like(codes, 1 / 12)
    exponent = (codes.abs().frexp()[1] - 1).clamp(min=smallest).masked_fill(codes == 0, smallest)
    return torch.exp2(2.0 * (exponent - mantissa)) / 12


def _steps(tensors: TensorSource, row: QuantizedModule, args: QuantizationArgs) -> Callable[[int, int], Tensor]:
    """Width of a code's step in some rows, float64 [rows, in], by (first row, number of rows)."""
    scale, whole = _fitting(tensors, row, "weight_scale"), _fitting(tensors, row, "weight_global_scale")
    assert scale is not None
    with np.errstate(all="ignore"):
        steps = scale / (whole[0] if whole is not None else 1.0)
    form = row.forms["weight_scale"].shape
    grid = torch.from_numpy(steps).reshape(form if len(form) == 2 else (len(steps), 1))
    columns = (torch.arange(row.shape[-1]) // _group_width(args, row.shape)).clamp(max=grid.shape[1] - 1)
    height = _group_height(args, row.shape)

    def part(start: int, count: int) -> Tensor:
        rows = (torch.arange(start, start + count) // height).clamp(max=len(grid) - 1)
        return grid[rows][:, columns]

    return part


def _against_scale(
    tensors: TensorSource,
    row: QuantizedModule,
    args: QuantizationArgs,
    contents: WeightContents,
    scale: NDArray[np.float64],
    zero: Tensor | None,
    groups: _Groups,
) -> tuple[WeightContents, NDArray[np.bool_]]:
    """Codes by group next to the scale of each group."""
    peak, energy, loss = groups.by_scale(_group_height(args, row.shape))
    idle: NDArray[np.bool_] = peak == 0
    whole = _fitting(tensors, row, "weight_global_scale")
    with np.errstate(all="ignore"):
        step = scale / (whole[0] if whole is not None else 1.0)
        total = float(np.sum(np.where(idle, 0.0, energy * step**2)))
        lost = float(np.sum(np.where(idle, 0.0, loss * step**2)))
    gain = math.sqrt(total / row.shape[0]) if math.isfinite(total) else None
    end = max(contents.last, -contents.first) if zero is None else (contents.last - contents.first) / 2
    live = peak[~idle]
    edged = None
    if zero is not None and zero.numel():
        ends = (zero == contents.first) | (zero == contents.last)
        edged = float(ends.double().mean())
    return replace(
        contents,
        reach=float(np.median(live)) / end if len(live) else None,
        full=float(np.mean(live >= FULL * end)) if len(live) and _fills(args) else None,
        gain=gain if len(live) else 0.0,
        rounding=math.sqrt(lost / total) if gain and math.isfinite(lost) else None,
        edged=edged,
        level=zero is not None and _level(tensors.tensor(f"{row.saved}.weight_zero_point"), args.num_bits),
        local_peak=float(np.max(scale)) if whole is not None and len(scale) else None,
    ), idle


def _fills(args: QuantizationArgs) -> bool:
    return bool(args.strategy == "tensor_group" or (args.num_bits == 8 and args.strategy == "channel"))


def _constant(stored: Tensor) -> bool:
    """Whether all elements are the same bits. FP8 is compared as bytes: NaN is not equal to itself."""
    bits = stored.view(torch.uint8) if stored.dtype.itemsize == 1 else stored
    return bool(stored.numel() > 1 and torch.equal(bits, bits.flatten()[0].expand_as(bits)))


def _level(stored: Tensor, bits: int) -> bool:
    """Whether so many zero points are stored as the same bits that it is no chance."""
    if not _constant(stored) or stored.numel() >= WORDS:
        return _constant(stored)
    if stored.dtype is not torch.int32 or stored.numel() < FEW_WORDS:
        return False
    # A word that repeats is no chance either where it holds unlike zero points.
    word = int(stored.flatten()[0]) & 0xFFFFFFFF
    packed = [(word >> shift) & (2**bits - 1) for shift in range(0, 32 - bits + 1, bits)]
    return len(packed) - max(map(packed.count, packed)) >= FEW_WORDS


def dense_contents(tensors: TensorSource, module: str, name: str) -> DenseContents:
    """Statistics of an unquantized tensor."""
    values = tensors.tensor(name)
    values = values.float() if values.is_floating_point() else values.double()
    finite = values.isfinite()
    nonfinite = int(values.numel() - int(finite.sum()))
    clean = values.masked_fill(~finite, 0.0) if nonfinite else values
    rms = math.sqrt(float(clean.double().square().mean())) if clean.numel() else 0.0
    matrix = values.ndim > 1
    return DenseContents(
        module=module,
        tensor=name,
        matrix=matrix,
        count=values.numel(),
        nonfinite=nonfinite,
        constant=bool(values.numel() > 1 and not nonfinite and clean.min() == clean.max()),
        zero=not nonfinite and not bool(clean.any()),
        gain=rms * math.sqrt(values.shape[-1]) if matrix else rms,
        sketch=sketch_of(values) if values.numel() and not nonfinite else None,
    )


def other_scale(tensors: TensorSource, module: str, name: str, idle: NDArray[np.bool_] | None = None) -> OtherScale:
    """A scale with its entries that scale nothing."""
    values = scale_values(tensors.tensor(name))
    blank: NDArray[np.bool_] = np.zeros(len(values), np.bool_)
    return OtherScale(
        module=module, tensor=name, values=values, idle=idle if idle is not None and len(idle) == len(values) else blank
    )


def _codes(
    tensors: TensorSource, row: QuantizedModule, leaf: str, args: QuantizationArgs
) -> Iterator[tuple[int, Tensor]]:
    """(first row, codes [rows, in] as float32), some rows at a time."""
    stored = tensors.tensor(f"{row.saved}.{leaf}")
    for start in range(0, stored.shape[0], ROWS):
        part = stored[start : start + ROWS].contiguous()
        if part.dtype is torch.int32:
            yield start, unpack_from_int32(part, args.num_bits, torch.Size((len(part), row.shape[-1]))).float()
        elif part.dtype is torch.uint8:
            yield start, unpack_fp4_from_uint8(part, len(part), part.shape[1] * 2).float()
        else:
            yield start, part.float()


def _zero_points(tensors: TensorSource, row: QuantizedModule, args: QuantizationArgs) -> Tensor | None:
    """Zero points, float32 [rows or 1, groups along a row]; None where there are none, or they do not fit."""
    name, form = f"{row.saved}.weight_zero_point", row.forms.get("weight_zero_point")
    if form is None or not _fits(tensors, name, form) or tensors.dtype(name) not in form.dtypes:
        return None
    if args.strategy == "block":
        return None  # not in any preset, and its zero points are not those of rows
    stored = tensors.tensor(name)
    if stored.dtype is torch.int32:
        groups = row.forms["weight_scale"].shape[-1]
        stored = unpack_from_int32(stored, args.num_bits, torch.Size((row.shape[0], groups)), packed_dim=0)
    return stored.float().reshape(-1, stored.shape[-1] if stored.ndim else 1)


def _fitting(tensors: TensorSource, row: QuantizedModule, leaf: str) -> NDArray[np.float64] | None:
    name, form = f"{row.saved}.{leaf}", row.forms.get(leaf)
    if form is None or not _fits(tensors, name, form) or tensors.dtype(name) not in form.dtypes:
        return None
    return scale_values(tensors.tensor(name))


def _fits(tensors: TensorSource, name: str, form: Form) -> bool:
    return name in tensors and form.has_shape(tensors.shape(name))


def _group_width(args: QuantizationArgs, shape: tuple[int, ...]) -> int:
    if args.strategy in GROUPED:
        return int(args.group_size or shape[-1])
    return int(args.block_structure[1]) if args.block_structure else shape[-1]


def _group_height(args: QuantizationArgs, shape: tuple[int, ...]) -> int:
    if args.strategy == "tensor":
        return shape[0]
    return int(args.block_structure[0]) if args.block_structure else 1


def _reduce_rows(values: Tensor, height: int) -> Tensor:
    """[rows, groups] → [row blocks, height, groups], the last block padded with zeros."""
    padded = torch.nn.functional.pad(values, (0, 0, 0, -values.shape[0] % height))
    return padded.reshape(-1, height, padded.shape[1])
