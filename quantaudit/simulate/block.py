"""Damage and prices: each decoder block is replayed with one fused group quantized, and its output compared.

Damage is how far the output h moves, the price how far the logits do, in nats per token:

    ½ · Σ over tokens of (g·Δh)², averaged over draws, with g = ∂/∂h from a backward pass (`passage`, `gradients`).

Tokens are squared apart: what they do to the logits is taken for uncorrelated. Small KLs add up over groups, so prices
do. A replay starts at the group: what ran before it is remembered from the clean run (`replay`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quantaudit.model.capture import first_tensor
from quantaudit.model.sites import Architecture, Group
from quantaudit.progress import Advance, no_advance
from quantaudit.quant.scales import QParams
from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.apply import InputQuantizer, input_quantizer, quantize_linear, quantized
from quantaudit.simulate.passage import Call, Passage
from quantaudit.simulate.price import PriceList, mean_price
from quantaudit.simulate.records import GroupRow
from quantaudit.simulate.replay import MEMO_BYTES, Memo, record, remembered

_NOTHING: Mapping[str, Mapping[str, Tensor]] = {}


def block_damage(clean: Tensor, changed: Tensor) -> Tensor:
    """Σ over tokens of ‖Δh_t‖² / ‖h_t‖²: a float64 scalar, to be divided by the number of tokens.

    clean, changed: [batch, tokens, hidden], a decoder block's outputs without padding; differences in float32.
    Per token first, so that one massive token cannot hide the rest. 0 where nothing changed.
    """
    h, delta = clean.float(), changed.float() - clean.float()
    norm = h.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (delta.square().sum(-1) / norm).double().sum()


def block_price(scores: Tensor, clean: Tensor, changed: Tensor) -> Tensor:
    """Σ over tokens of ½·(g·Δh)²: a float64 scalar, in nats, to be divided by the number of tokens.

    scores: g, shaped as the block's outputs, [batch, tokens, …, hidden] without padding; products in float32.
    """
    felt = (scores.float() * (changed.float() - clean.float())).flatten(2).sum(-1)
    return 0.5 * felt.double().square().sum()


@torch.no_grad()
def replay_groups(
    model: nn.Module,
    architecture: Architecture,
    passage: Passage,
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    progress: Advance = no_advance,
    *,
    factors: Mapping[str, Mapping[str, Tensor]] = _NOTHING,
    only: Mapping[str, Container[str]] | None = None,
    weights_only: bool = True,
) -> list[GroupRow]:
    """Damage of every fused group under every scheme, and its price where the passage had a way back.

    qparams: by scheme name, then by group name, for static schemes. factors: the same, [in], where a group is smoothed
    first: its input is divided by them, the columns of its weights multiplied. only: by group name, names of the
    schemes that it is replayed under; others get null. weights_only: whether to replay each group once more for every
    way to quantize its weights, with its input as it is; a ranking needs none.

    A group whose static range is not finite gets null; Linears outside the blocks have no damage. The passage's calls
    are forgotten block by block. `progress` is called after each group and variant.
    """
    rows: list[GroupRow] = []
    for index, path in enumerate(architecture.blocks):
        inside = [group for group in architecture.groups if group.layer == index]
        calls = passage.calls[path]
        if not calls:  # a layer that the model skips has nothing to replay
            rows += [_row(group, scheme, None) for group in inside for scheme in schemes]
            continue
        runs = clean_runs(model.get_submodule(path), path, inside, calls)
        for group in inside:
            smoothing = {name: found[group.name] for name, found in factors.items() if group.name in found}
            replay = _Replay(model, path, group, runs, smoothing, passage.draws)
            ranges = {name: found.get(group.name) for name, found in qparams.items()}
            own = [scheme for scheme in schemes if only is None or scheme.name in only[group.name]]
            rows += replay.rows(own, ranges, progress, weights_only)
            rows += [_row(group, scheme, None) for scheme in schemes if scheme not in own]
        calls.clear()
    outside = [group for group in architecture.groups if group.layer is None]
    rows += [_row(group, scheme, None) for group in outside for scheme in schemes]
    return [_priced(row, passage.prices) for row in rows]


@dataclass(frozen=True, slots=True)
class CleanRun:
    """One call of a block, its hidden states [batch, tokens, hidden] without quantization, and what ran inside."""

    call: Call
    output: Tensor
    memo: Memo


def clean_runs(block: nn.Module, path: str, groups: Sequence[Group], calls: Sequence[Call]) -> list[CleanRun]:
    """Every call run once more as it is. Where MEMO_BYTES are full, memos stay empty and replays compute all again."""
    members = [inner_paths(group, path) for group in groups]
    runs, held = [], 0
    for call in calls:
        output, memo = record(block, call.args, call.kwargs)
        held += memo.keep(members)
        runs.append(CleanRun(call, output, memo if held <= MEMO_BYTES else Memo()))
    return runs


def inner_paths(group: Group, block: str) -> list[str]:
    """Members of a group by their paths inside the block."""
    return [member.removeprefix(f"{block}.") for member in group.members]


def steps(architecture: Architecture, schemes: Sequence[Scheme]) -> int:
    """How often `group_damage` will call `progress`."""
    inside = sum(group.layer is not None for group in architecture.groups)
    return inside * (len(schemes) + len(_weight_variants(schemes)))


@dataclass(frozen=True, slots=True)
class Effect:
    """What quantizing one group does; None where it is not known or not finite. price: nats per token."""

    damage: float | None
    price: float | None


NO_EFFECT = Effect(None, None)


@dataclass(slots=True)
class _Replay:
    """One group in its block at `path`, with the block's clean runs. factors: by scheme name, where it is smoothed."""

    model: nn.Module
    path: str
    group: Group
    runs: Sequence[CleanRun]
    factors: Mapping[str, Tensor]
    draws: int
    weights: dict[tuple[str, int], dict[str, Tensor]] = field(default_factory=dict)
    """Changed weights by how they are quantized and by factor, then by member."""

    def rows(
        self, schemes: Sequence[Scheme], ranges: Mapping[str, QParams | None], progress: Advance, weights_only: bool
    ) -> Iterator[GroupRow]:
        """One row for each scheme; weights alone are replayed once for schemes that quantize them alike.

        ranges: the group's own, by scheme name.
        """
        alone: dict[str, Effect] = {}
        for scheme in _weight_variants(schemes):
            if weights_only:
                alone[str(scheme.weights)] = self.effect(scheme, None)
            progress()
        for scheme in schemes:
            effect = NO_EFFECT
            found = ranges.get(scheme.name)
            if scheme.input_activations is None and str(scheme.weights) in alone:
                effect = alone[str(scheme.weights)]
            elif not scheme.static or found is not None:
                device, factor = self.runs[0].output.device, self.factors.get(scheme.name)
                effect = self.effect(scheme, input_quantizer(scheme, found, device, factor=factor))
            progress()
            row = _row(self.group, scheme, alone.get(str(scheme.weights), NO_EFFECT).damage)
            yield row.model_copy(update={"damage": effect.damage, "price": effect.price})

    def effect(self, scheme: Scheme, quantizer: InputQuantizer | None) -> Effect:
        """Means over all recorded tokens; None where they are not finite."""
        block = self.model.get_submodule(self.path)
        members = inner_paths(self.group, self.path)
        damage, price = torch.zeros(2, dtype=torch.float64, device=self.runs[0].output.device)
        with quantized(self.model, [self.group], self.changed_weights(scheme), {self.group.name: quantizer}):
            for run in self.runs:
                with remembered(block, run.memo, members):
                    h = first_tensor(block(*run.call.args, **run.call.kwargs))
                damage += block_damage(run.output, h)
                for scores in run.call.scores:
                    price += block_price(scores, run.output, h)
        heard = self.draws > 0 and any(run.call.scores for run in self.runs)
        tokens = sum(run.output.shape[:2].numel() for run in self.runs)
        return Effect(
            mean_price(float(damage), sum(run.output.shape[:-1].numel() for run in self.runs)),
            mean_price(float(price), tokens * self.draws) if heard else None,
        )

    def changed_weights(self, scheme: Scheme) -> dict[str, Tensor]:
        """By member; made once for all schemes that change weights alike."""
        factor = self.factors.get(scheme.name)
        if scheme.weights is None and factor is None:
            return {}
        key = (str(scheme.weights), id(factor))
        if key not in self.weights:
            self.weights[key] = {
                member: quantize_linear(self.model.get_submodule(member), scheme.weights, factor)
                for member in self.group.members
            }
        return self.weights[key]


def _weight_variants(schemes: Sequence[Scheme]) -> list[Scheme]:
    """One scheme for each distinct way to quantize weights."""
    return list({str(scheme.weights): scheme for scheme in schemes if scheme.weights is not None}.values())


def _row(group: Group, scheme: Scheme, weights_only: float | None) -> GroupRow:
    return GroupRow(
        group=group.name,
        projection=group.projection,
        members=list(group.members),
        layer=group.layer,
        scheme=scheme.name,
        damage=None,
        damage_weights_only=weights_only,
        price=None,
    )


def _priced(row: GroupRow, prices: PriceList) -> GroupRow:
    key = (row.group, row.scheme)
    return row.model_copy(update={"price": prices[key]}) if key in prices else row
