"""Block damage: replay each decoder block with one fused group quantized and compare its output with the clean one.

Forward passes only, one block at work at a time; ranks fused groups as brute force over the whole model does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.capture import first_tensor
from quantaudit.model.drive import batches, forward, one_logit
from quantaudit.model.sites import Architecture, Group
from quantaudit.progress import Advance, no_advance
from quantaudit.quant.scales import QParams
from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.apply import InputQuantizer, input_quantizer, quantize_linear, quantized
from quantaudit.simulate.records import GroupRow

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments and keyword arguments of one call of a decoder block, as the model made it."""


def block_damage(clean: Tensor, changed: Tensor) -> Tensor:
    """Σ over tokens of ‖Δh_t‖² / ‖h_t‖²: a float64 scalar, to be divided by the number of tokens.

    clean, changed: [batch, tokens, hidden], a decoder block's outputs without padding; differences in float32.
    Per token first, so that one massive token cannot hide the rest. 0 where nothing changed.
    """
    h, delta = clean.float(), changed.float() - clean.float()
    norm = h.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (delta.square().sum(-1) / norm).double().sum()


@torch.no_grad()
def group_damage(
    model: nn.Module,
    architecture: Architecture,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    progress: Advance = no_advance,
) -> list[GroupRow]:
    """Damage of every fused group under every scheme. qparams: by scheme name, then by group name, for static schemes.

    A group whose static range is not finite gets null; so do Linears outside the blocks.
    `progress` is called after each group and variant.
    """
    calls = record_calls(model, architecture.blocks, samples)
    rows: list[GroupRow] = []
    for index, path in enumerate(architecture.blocks):
        block = model.get_submodule(path)
        if not calls[path]:  # a layer that the model skips has nothing to replay
            skipped = [group for group in architecture.groups if group.layer == index]
            rows += [_row(group, scheme, None, None) for group in skipped for scheme in schemes]
            continue
        clean = [first_tensor(block(*args, **kwargs)) for args, kwargs in calls[path]]
        for group in architecture.groups:
            if group.layer == index:
                replay = _Replay(model, block, group, calls[path], clean)
                ranges = {name: found.get(group.name) for name, found in qparams.items()}
                rows += replay.rows(schemes, ranges, progress)
        calls[path].clear()
    outside = [group for group in architecture.groups if group.layer is None]
    rows += [_row(group, scheme, None, None) for group in outside for scheme in schemes]
    return rows


def steps(architecture: Architecture, schemes: Sequence[Scheme]) -> int:
    """How often `group_damage` will call `progress`."""
    inside = sum(group.layer is not None for group in architecture.groups)
    return inside * (len(schemes) + len(_weight_variants(schemes)))


def record_calls(model: nn.Module, blocks: Sequence[str], samples: Sequence[TokenizedSample]) -> dict[str, list[Call]]:
    """What every decoder block was called with, sample by sample: hidden states with their masks and positions."""
    calls: dict[str, list[Call]] = {path: [] for path in blocks}
    with ExitStack() as stack:
        for path in blocks:
            handle = model.get_submodule(path).register_forward_pre_hook(
                lambda _module, args, kwargs, path=path: calls[path].append((args, kwargs)), with_kwargs=True
            )
            stack.callback(handle.remove)
        stack.enter_context(one_logit(model))
        device = next(model.parameters()).device
        for batch in batches(samples, 1, pad=0, device=device):
            forward(model, batch)
    return calls


@dataclass(frozen=True, slots=True)
class _Replay:
    """One group in its block, with the block's recorded calls and clean outputs."""

    model: nn.Module
    block: nn.Module
    group: Group
    calls: list[Call]
    clean: list[Tensor]

    def rows(
        self, schemes: Sequence[Scheme], ranges: Mapping[str, QParams | None], progress: Advance
    ) -> Iterator[GroupRow]:
        """One row for each scheme; weights alone are replayed once for schemes that quantize them alike.

        ranges: the group's own, by scheme name.
        """
        weights_only: dict[str, float | None] = {}
        for scheme in _weight_variants(schemes):
            weights_only[str(scheme.weights)] = self.damage(scheme, None)
            progress()
        for scheme in schemes:
            damage = None
            found = ranges.get(scheme.name)
            if not scheme.static or found is not None:
                damage = self.damage(scheme, input_quantizer(scheme, found, self.clean[0].device))
            progress()
            yield _row(self.group, scheme, damage, weights_only.get(str(scheme.weights)))

    def damage(self, scheme: Scheme, quantizer: InputQuantizer | None) -> float | None:
        """Mean over all recorded tokens; None where it is not finite."""
        weights = {}
        if scheme.weights is not None:
            for member in self.group.members:
                weights[member] = quantize_linear(self.model.get_submodule(member), scheme.weights)
        total = torch.zeros((), dtype=torch.float64, device=self.clean[0].device)
        with quantized(self.model, [self.group], weights, {self.group.name: quantizer}):
            for (args, kwargs), clean in zip(self.calls, self.clean, strict=True):
                total += block_damage(clean, first_tensor(self.block(*args, **kwargs)))
        mean = float(total) / sum(clean.shape[:-1].numel() for clean in self.clean)
        return mean if mean < float("inf") else None


def _weight_variants(schemes: Sequence[Scheme]) -> list[Scheme]:
    """One scheme for each distinct way to quantize weights."""
    return list({str(scheme.weights): scheme for scheme in schemes if scheme.weights is not None}.values())


def _row(group: Group, scheme: Scheme, damage: float | None, weights_only: float | None) -> GroupRow:
    return GroupRow(
        group=group.name,
        projection=group.projection,
        members=list(group.members),
        layer=group.layer,
        scheme=scheme.name,
        damage=damage,
        damage_weights_only=weights_only,
        price=None,
    )
