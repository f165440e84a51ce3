"""Prices of groups at the outputs of their Linears, for those whose effect decoder blocks do not show in full.

Quantizing a group changes the outputs of its Linears by Δy, and with g = ∂/∂y its price in nats is

    ½ · Σ over tokens of (Σ over members and channels of g·Δy)², averaged over draws.

Members are summed inside the token before squaring: they change together, by errors of one shared input, and their
effects on the logits add or cancel. Tokens are squared apart: what they do to the logits is taken for uncorrelated.
Only Δy depends on the scheme, so that all schemes are priced in one pass. Inside the blocks, where attention or a gate
makes something else than a linear function of it, the change behind them is replayed instead (`group_effects`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn

from quantaudit.common.ranks.team import gather, in_order
from quantaudit.model.forward.capture import first_tensor
from quantaudit.model.forward.hooks import watch_outputs
from quantaudit.model.sites import Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import Scheme
from quantaudit.quant.weights import row_by_row, weight_out_in
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.quantized.modules import input_quantizer, quantize_weight

RECORD_BYTES = 1 << 29
"""Inputs and gradients kept at once; a larger evaluation runs in several rounds, each quantizing weights once more."""

SLICE_BYTES = 1 << 26
"""Rows of a weight that are quantized at once."""

PriceList = dict[tuple[str, str], float | None]
"""(group name, scheme name) → nats per token; None without a finite range, or where no finite gradient came."""


@dataclass(slots=True)
class RecordedInput:
    """One tensor that Linears of a group read, with the gradients at their outputs.

    x: [..., in]. gradients: by member, one [..., out] for each draw. Both in the dtype that the model gave them.
    number: of the sample, among those of all ranks.
    """

    x: Tensor
    number: int = 0
    gradients: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True, kw_only=True)
class LinearSensitivity:
    """Prices of the experiment's groups under every scheme, summed over the samples of a backward pass.

    only: by group name, names of the schemes that it is priced under. Gradients have the dtype of what they are of,
    sums are float64. terms: what each input adds to a sum, with the number of its sample. number: of the one that runs.
    most: bytes of what is recorded and not yet priced, beyond which it is.
    """

    experiment: Experiment
    only: Mapping[str, Container[str]] | None = None
    number: int = 0
    most: int = field(default_factory=lambda: RECORD_BYTES)
    terms: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    inputs: dict[str, list[RecordedInput]] = field(default_factory=lambda: defaultdict(list))
    aside: dict[int, dict[str, list[RecordedInput]]] = field(default_factory=dict)

    def watch(self, stack: ExitStack) -> None:
        """Until the stack closes, record inputs of the Linears and gradients at their outputs."""
        for group in self.experiment.groups:
            for member in group.members:
                hook = _recorder(self, group.name, member)
                module = self.experiment.model.get_submodule(member)
                stack.enter_context(watch_outputs(module, hook))

    def flush(self, *, full: bool = True, pending: bool = False, inside: bool = False) -> None:
        """Price what was recorded, group by group, and forget it. full: even where less than `most` is held.

        pending: whether inputs without a gradient wait for one; else they are forgotten too. inside: those of groups in
        the blocks alone.
        """
        held = sum(_size(recorded) for group_inputs in self.inputs.values() for recorded in group_inputs)
        if not full and held <= self.most:
            return
        model, ranges = self.experiment.model, self.experiment.ranges
        for group in self.experiment.groups:
            if inside and group.layer is None:
                continue
            recorded = self.inputs.pop(group.name, [])
            if pending and (waiting := [part for part in recorded if not part.gradients]):
                self.inputs[group.name] = waiting
                recorded = [part for part in recorded if part.gradients]
            if not recorded:
                continue
            weights = {member: weight_out_in(model.get_submodule(member)).detach() for member in group.members}
            schemes = schemes_of(self.experiment, group, self.only)
            qparams = {scheme.name: ranges.of(scheme, group) for scheme in schemes}
            numbers = [part.number for part in recorded if part.gradients]
            for name, values in price_inputs(recorded, weights, schemes, qparams).items():
                # One draw after the other, as they come back through a model whose blocks are on disk.
                for draw in zip_longest(*values):
                    terms = zip(numbers, draw, strict=True)
                    self.terms[group.name, name] += [(number, term) for number, term in terms if term is not None]

    def forget(self) -> None:
        """Drop all that was recorded, and what was priced of it."""
        self.inputs.clear()
        self.aside.clear()
        self.terms.clear()

    def set_aside(self, sample: int) -> None:
        """What was recorded inside the blocks since the last call is of this sample, and there is no more of it."""
        for group in self.experiment.groups:
            if group.layer is not None and self.inputs.get(group.name):
                self.aside.setdefault(sample, {})[group.name] = self.inputs.pop(group.name)

    def flush_aside(self) -> None:
        """Price what was set aside, in the order of the samples."""
        for _, by_group in sorted(self.aside.items()):
            for name, recorded in by_group.items():
                self.inputs[name] += recorded
        self.aside.clear()
        self.flush(inside=True)

    def prices(self, count: int) -> PriceList:
        """Over the samples of all ranks. count: their tokens, times the draws for each."""
        everyone = gather(dict(self.terms))
        prices: PriceList = {}
        for key in [
            (group.name, scheme.name) for group in self.experiment.groups for scheme in self.experiment.schemes
        ]:
            terms = sorted((term for part in everyone for term in part.get(key, [])), key=lambda term: term[0])
            prices[key] = finite_mean(in_order(value for _, value in terms) if terms else None, count)
        return prices


def schemes_of(experiment: Experiment, group: Group, only: Mapping[str, Container[str]] | None) -> list[Scheme]:
    """Schemes that one group is simulated under. only: by group name, names of schemes; None for all."""
    return [scheme for scheme in experiment.schemes if only is None or scheme.name in only[group.name]]


def finite_mean(total: float | None, count: int) -> float | None:
    """A sum over tokens by their count; None where there is none, or none that is finite."""
    mean = float("nan") if total is None else total / count
    return mean if mean < float("inf") else None


@torch.no_grad()
def price_inputs(
    inputs: Iterable[RecordedInput],
    weights: Mapping[str, Tensor],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, QParams | None],
) -> dict[str, list[list[float]]]:
    """Σ over tokens of ½·(Σ g·Δy)² by scheme name, for one group: of each input that a gradient came to, by draw.

    Schemes without a range are left out, and all of them where no gradient ever came.

    weights: by member, [out, in]. qparams: by scheme name. Δy = x̂Ŵᵀ − xWᵀ is never formed: with Δx = x̂ − x and
    ΔW = Ŵ − W, g·Δy = gW·Δx + gΔW·x̂, whose products with g serve all schemes of the same weights.
    """
    with_gradient = [recorded for recorded in inputs if recorded.gradients]
    usable = [s for s in schemes if with_gradient and (not s.static or qparams.get(s.name) is not None)]
    variants = {str(scheme.weights): scheme.weights for scheme in usable if scheme.weights is not None}
    gradients = _input_gradients(with_gradient, weights, None)
    changes = {key: _input_gradients(with_gradient, weights, args) for key, args in variants.items()}
    sums: dict[str, list[list[float]]] = {scheme.name: [] for scheme in usable}
    for index, (recorded, gradient) in enumerate(zip(with_gradient, gradients, strict=True)):
        x = recorded.x.float()
        for scheme in usable:
            quantizer = input_quantizer(scheme, qparams.get(scheme.name), x.device)
            restored = x if quantizer is None else quantizer(recorded.x).float()
            directional = torch.zeros(gradient.shape[:-1], dtype=torch.float64, device=x.device)
            if scheme.weights is not None:
                directional += torch.linalg.vecdot(changes[str(scheme.weights)][index], restored)
            if quantizer is not None:
                directional += torch.linalg.vecdot(gradient, restored - x)
            sums[scheme.name].append([0.5 * float(one.square().sum()) for one in directional])
    return sums


def _input_gradients(
    inputs: Sequence[RecordedInput], weights: Mapping[str, Tensor], args: QuantizationArgs | None
) -> list[Tensor]:
    """Gradients along each input channel: Σ over members of g·M, float32 [draws, ..., in] for each recorded input.

    M: a member's weight, or with `args` what quantizing it changes. It is computed in slices of SLICE_BYTES, each used
    for all inputs: with a large vocabulary the change of the output projection alone would outweigh the model.
    """
    products: list[dict[str, Tensor]] = [{} for _ in inputs]
    for member, weight in weights.items():
        for rows in _row_slices(weight, args):
            part = weight[rows]
            matrix = part if args is None else quantize_weight(part, args) - part
            for recorded, by_member in zip(inputs, products, strict=True):
                if member in recorded.gradients:
                    gradients = [gradient[..., rows] for gradient in recorded.gradients[member]]
                    wide = torch.promote_types(gradients[0].dtype, matrix.dtype)  # a Linear may cast its weight itself
                    # Each draw by itself: more rows at a time may be added up in another order.
                    product = torch.stack([gradient.to(wide) @ matrix.to(wide) for gradient in gradients]).float()
                    total = by_member.get(member)
                    by_member[member] = product if total is None else total.add_(product)
    return [
        torch.stack([by_member[member] for member in recorded.gradients]).sum(0)
        for recorded, by_member in zip(inputs, products, strict=True)
    ]


def _row_slices(weight: Tensor, args: QuantizationArgs | None) -> Iterator[slice]:
    """Slices that cover the rows of a weight [out, in]; a single one where rows are not quantized one by one."""
    rows = len(weight)
    if args is None or row_by_row(args):
        rows = max(1, SLICE_BYTES // max(1, weight[:1].nbytes))
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


def _recorder(linears: LinearSensitivity, group: str, member: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not output.requires_grad:
            return
        x, inputs = first_tensor((*args, *kwargs.values())).detach(), linears.inputs[group]
        # Members that read one tensor share an entry; experts, which see different tokens, do not.
        recorded = next((r for r in inputs if r.x.data_ptr() == x.data_ptr() and r.x.shape == x.shape), None)
        if recorded is None:
            recorded = RecordedInput(x, linears.number)
            inputs.append(recorded)
        output.register_hook(lambda gradient: recorded.gradients[member].append(gradient.detach()))  # type: ignore[no-untyped-call]

    return hook


def _size(recorded: RecordedInput) -> int:
    return sum(tensor.nbytes for tensor in [recorded.x, *(g for draws in recorded.gradients.values() for g in draws)])
