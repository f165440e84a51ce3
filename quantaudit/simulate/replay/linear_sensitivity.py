"""Prices of groups at the outputs of their Linears, for those of which decoder blocks do not tell all.

Quantizing a group changes the outputs of its Linears by Δy, and with g = ∂/∂y its price in nats is

    ½ · Σ over tokens of (Σ over members and channels of g·Δy)², averaged over draws.

Members are summed inside the token before squaring: they change together, by errors of one shared input, and their
effects on the logits add or cancel. Tokens are squared apart: what they do to the logits is taken for uncorrelated.
Only Δy depends on the scheme, so that all schemes are priced in one pass. Inside the blocks, where attention or a gate
makes something else than a linear function of it, the change of the block's output is replayed instead (`block`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn

from quantaudit.model.forward.capture import first_tensor
from quantaudit.model.sites import Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import Scheme
from quantaudit.quant.weights import row_by_row, weight_out_in
from quantaudit.simulate.quantized.modules import input_quantizer, quantize_weight

RECORD_BYTES = 1 << 29
"""Inputs and gradients kept at once; a larger evaluation runs in several rounds, each quantizing weights anew."""

SLICE_BYTES = 1 << 26
"""Rows of a weight that are quantized at once."""

PriceList = dict[tuple[str, str], float | None]
"""(group name, scheme name) → nats per token; None without a finite range, or where no finite gradient came."""


@dataclass(slots=True)
class Read:
    """One tensor that Linears of a group read, and what the logits feel at their outputs.

    x: [..., in]. gradients: by member, one [..., out] for each draw. Both in the dtype in which the model handed them.
    """

    x: Tensor
    gradients: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True, kw_only=True)
class LinearPrices:
    """Prices of groups under every scheme, collected over the samples of a backward pass.

    qparams: by scheme name, then by group name, for static schemes. only: by group name, names of the schemes that it
    is priced under. Gradients have the dtype of what they are of, sums are float64.
    """

    model: nn.Module
    groups: Sequence[Group]
    schemes: Sequence[Scheme]
    qparams: Mapping[str, Mapping[str, QParams | None]]
    only: Mapping[str, Container[str]] | None = None
    totals: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    reads: dict[str, list[Read]] = field(default_factory=lambda: defaultdict(list))

    def watch(self, stack: ExitStack) -> None:
        """Until the stack closes, record what Linears read, and have their outputs tell the gradients."""
        for group in self.groups:
            for member in group.members:
                hook = _recorder(self.reads[group.name], member)
                stack.callback(self.model.get_submodule(member).register_forward_hook(hook, with_kwargs=True).remove)

    def settle(self, *, full: bool = True) -> None:
        """Price what was recorded, group by group, and forget it. full: even where RECORD_BYTES are not yet held."""
        held = sum(_size(read) for found in self.reads.values() for read in found)
        if not full and held <= RECORD_BYTES:
            return
        for group in self.groups:
            weights = {member: weight_out_in(self.model.get_submodule(member)).detach() for member in group.members}
            ranges = {scheme.name: self.qparams.get(scheme.name, {}).get(group.name) for scheme in self.schemes}
            own = [s for s in self.schemes if self.only is None or s.name in self.only[group.name]]
            for name, total in price_reads(self.reads.pop(group.name, []), weights, own, ranges).items():
                self.totals[group.name, name] += total

    def prices(self, count: int) -> PriceList:
        """count: tokens, times the draws for each."""
        return {
            (group.name, scheme.name): finite_mean(self.totals.get((group.name, scheme.name)), count)
            for group in self.groups
            for scheme in self.schemes
        }


def finite_mean(total: float | None, count: int) -> float | None:
    """A sum over tokens by their count; None where there is none, or none that is finite."""
    mean = float("nan") if total is None else total / count
    return mean if mean < float("inf") else None


@torch.no_grad()
def price_reads(
    reads: Iterable[Read],
    weights: Mapping[str, Tensor],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, QParams | None],
) -> dict[str, float]:
    """Σ over tokens and draws of ½·(Σ g·Δy)² by scheme name, for one group.

    Schemes without a range are left out, and all of them where no gradient ever came.

    weights: by member, [out, in]. qparams: by scheme name. Δy = x̂Ŵᵀ − xWᵀ is never formed: with Δx = x̂ − x and
    ΔW = Ŵ − W, g·Δy = gW·Δx + gΔW·x̂, whose products with g serve all schemes of the same weights.
    """
    heard = [read for read in reads if read.gradients]
    usable = [scheme for scheme in schemes if heard and (not scheme.static or qparams.get(scheme.name) is not None)]
    variants = {str(scheme.weights): scheme.weights for scheme in usable if scheme.weights is not None}
    pulls = _pulls(heard, weights, None)
    shifts = {key: _pulls(heard, weights, args) for key, args in variants.items()}
    totals = dict.fromkeys((scheme.name for scheme in usable), 0.0)
    for index, (read, pulled) in enumerate(zip(heard, pulls, strict=True)):
        x = read.x.float()
        for scheme in usable:
            quantizer = input_quantizer(scheme, qparams.get(scheme.name), x.device)
            restored = x if quantizer is None else quantizer(read.x).float()
            felt = torch.zeros(pulled.shape[:-1], dtype=torch.float64, device=x.device)
            if scheme.weights is not None:
                felt += torch.linalg.vecdot(shifts[str(scheme.weights)][index], restored)
            if quantizer is not None:
                felt += torch.linalg.vecdot(pulled, restored - x)
            totals[scheme.name] += 0.5 * float(felt.square().sum())
    return totals


def _pulls(reads: Sequence[Read], weights: Mapping[str, Tensor], args: QuantizationArgs | None) -> list[Tensor]:
    """How the scores feel changes along each input channel: Σ over members of g·M, float32 [draws, ..., in] by read.

    M: a member's weight, or with `args` what quantizing it changes. It is made in slices of SLICE_BYTES, each used for
    all reads: of a large vocabulary, the change of the output projection alone would outweigh the model.
    """
    products: list[dict[str, Tensor]] = [{} for _ in reads]
    for member, weight in weights.items():
        for rows in _row_slices(weight, args):
            part = weight[rows]
            matrix = part if args is None else quantize_weight(part, args) - part
            for read, found in zip(reads, products, strict=True):
                if member in read.gradients:
                    gradients = torch.stack([gradient[..., rows] for gradient in read.gradients[member]])
                    wide = torch.promote_types(gradients.dtype, matrix.dtype)  # a Linear may cast its weight itself
                    product = (gradients.to(wide) @ matrix.to(wide)).float()
                    found[member] = product if member not in found else found[member].add_(product)
    return [
        torch.stack([found[member] for member in read.gradients]).sum(0)
        for read, found in zip(reads, products, strict=True)
    ]


def _row_slices(weight: Tensor, args: QuantizationArgs | None) -> Iterator[slice]:
    """Some rows of a weight [out, in] after the other; all of them at once where they are not quantized one by one."""
    rows = len(weight)
    if args is None or row_by_row(args):
        rows = max(1, SLICE_BYTES // max(1, weight[:1].nbytes))
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


def _recorder(reads: list[Read], member: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not output.requires_grad:
            return
        x = first_tensor((*args, *kwargs.values())).detach()
        # Members that read one tensor share an entry; experts, which see different tokens, do not.
        read = next((read for read in reads if read.x.data_ptr() == x.data_ptr() and read.x.shape == x.shape), None)
        if read is None:
            read = Read(x)
            reads.append(read)
        output.register_hook(lambda gradient: read.gradients[member].append(gradient.detach()))  # type: ignore[no-untyped-call]

    return hook


def _size(read: Read) -> int:
    return sum(tensor.nbytes for tensor in [read.x, *(g for found in read.gradients.values() for g in found)])
