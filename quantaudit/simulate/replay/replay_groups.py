"""Damage and prices: decoder blocks are replayed with one fused group quantized, and their outputs are compared.

Damage is the relative change of the block's output h (block reconstruction error). The price is the logits' KL to
second order (Fisher sensitivity), in nats per token:

    ½ · Σ over tokens of (g·Δy)², averaged over draws,

with y the output of the group's residual branch (`residual_branch`), and g = ∂/∂y from a backward pass
(`backward_pass`, `fisher`). Tokens are squared separately: their effects on the logits are taken for uncorrelated.
Small KLs add up over groups, so prices do. A replay starts at the group, as all that ran before it is recorded from the
clean run (`memo`), and for a price it ends at the residual branch.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quantaudit.common.outputs.resume import NO_UNITS, Units
from quantaudit.common.progress import Advance, no_advance
from quantaudit.common.ranks.team import part_name
from quantaudit.model.blockwise.budget import PROGRAM
from quantaudit.model.blockwise.memory import resident_bytes
from quantaudit.model.forward.capture import first_tensor
from quantaudit.model.forward.hooks import watch_outputs
from quantaudit.model.sites import Group
from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.quantized.modules import InputQuantizer, input_quantizer, quantize_linear, quantized
from quantaudit.simulate.quantized.plan import plan_weights
from quantaudit.simulate.replay.backward_pass import RecordedPass
from quantaudit.simulate.replay.linear_sensitivity import schemes_of
from quantaudit.simulate.replay.memo import MEMO_BYTES, Memo, ModuleCall, record, remembered
from quantaudit.simulate.replay.recorded_calls import Call
from quantaudit.simulate.replay.replayed_sums import (
    CallSums,
    PendingCall,
    ReplayedError,
    Variants,
    fetched,
    of_all_ranks,
    restored,
)
from quantaudit.simulate.replay.residual_branch import ResidualBranch, ResidualBranches

_NOTHING: Mapping[str, Mapping[str, Tensor]] = {}
_UNKNOWN = ReplayedError(None, None, None)


def block_damage(clean: Tensor, changed: Tensor) -> Tensor:
    """Σ over tokens of ‖Δh_t‖² / ‖h_t‖²: a float64 scalar, to be divided by the number of tokens.

    clean, changed: [batch, tokens, hidden], a decoder block's outputs without padding; differences in float32.
    Per token first, so that one massive token cannot hide the rest. 0 where nothing changed.
    """
    h, delta = clean.float(), changed.float() - clean.float()
    norm = h.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (delta.square().sum(-1) / norm).double().sum()


def fisher_kl(gradients: Tensor, clean: Tensor, changed: Tensor) -> Tensor:
    """½·(g·Δy)² of every token: float64 [batch, tokens] or [tokens], in nats. Their mean is a price.

    gradients: g, shaped as the tensors compared, [batch, tokens, …, hidden] or [tokens, hidden]; products in float32.
    """
    products = gradients.float() * (changed.float() - clean.float())
    directional = products.flatten(min(2, products.ndim - 1)).sum(-1)
    return 0.5 * directional.double().square()


@torch.no_grad()
def replay_groups(
    experiment: Experiment,
    recorded: RecordedPass,
    progress: Advance = no_advance,
    *,
    factors: Mapping[str, Mapping[str, Tensor]] = _NOTHING,
    only: Mapping[str, Container[str]] | None = None,
    price_alone: Container[str] = (),
    weights_only: bool = True,
    units: Units = NO_UNITS,
) -> list[GroupEffect]:
    """Damage of every fused group under every scheme, and its price where the pass had a backward pass.

    Ranks replay the samples that they have recorded; each of them returns the effects over all.

    factors: by scheme name, then by group name, [in], where a group is smoothed first: its input is divided by them,
    the columns of its weights multiplied. only: by group name, names of the schemes that it is replayed under; under
    others nothing is measured. price_alone: names of schemes of which no damage is measured, only prices, for which
    replays are shorter. weights_only: whether to replay each group once more for every other way to quantize its
    weights, with its input unmodified; a ranking needs none. units: groups that an interrupted run had replayed.

    Nothing is measured of a group whose static range is not finite; Linears outside the blocks have no damage. The
    recorded calls are forgotten block by block. `progress` is called after each group and variant.
    """
    model, architecture = experiment.model, experiment.architecture
    sums: dict[str, Variants] = {}
    for index, path in enumerate(architecture.blocks):
        inside = [group for group in architecture.groups if group.layer == index]
        calls = recorded.calls[path]
        if not calls:  # a layer that the model skips has nothing to replay
            continue
        pending = []
        for group in inside:
            kept = restored(units.get_json(_unit(group)))
            if kept is None:
                pending.append(group)
                continue
            sums[group.name] = kept
            _tick_all(schemes_of(experiment, group, only), price_alone, progress)
        held = _memo_bytes(experiment, index)
        block = model.get_submodule(path)
        runs = clean_runs(block, path, inside, calls, recorded.branches, memo_bytes=held) if pending else []
        for group in pending:
            smoothing = {name: by_group[group.name] for name, by_group in factors.items() if group.name in by_group}
            branch = recorded.branches.get(group.name, ResidualBranch())
            chosen = schemes_of(experiment, group, only)
            full = [scheme.name for scheme in chosen if scheme.name not in price_alone]
            replay = _Replay(experiment, path, group, runs, branch, smoothing, full)
            alone = _weight_variants(chosen, price_alone)
            sums[group.name] = replay.variants(chosen, alone, progress, weights_only)
            units.put_json(_unit(group), sums[group.name])
        calls.clear()
        runs.clear()
    if experiment.weights is not None:
        experiment.weights.drop()
    return _effects(experiment, of_all_ranks(sums), recorded, only, price_alone)


def _unit(group: Group) -> str:
    """What is kept of a group in a run that may be interrupted: of this rank's samples."""
    return f"{group.name}{part_name()}"


def _effects(
    experiment: Experiment,
    sums: Mapping[str, Variants],
    recorded: RecordedPass,
    only: Mapping[str, Container[str]] | None,
    price_alone: Container[str],
) -> list[GroupEffect]:
    """Of all groups under all schemes, those outside the blocks last."""
    groups = [
        *(g for index, _ in enumerate(experiment.architecture.blocks) for g in experiment.groups if g.layer == index),
        *(group for group in experiment.groups if group.layer is None),
    ]
    effects = []
    for group in groups:
        variants, replayed = sums.get(group.name, {}), schemes_of(experiment, group, only)
        errors = {name: ReplayedError.of(calls, recorded.draws) for name, calls in variants.items()}
        for scheme in experiment.schemes:
            effect = GroupEffect(group=group, scheme=scheme)
            effects.append(effect)
            if scheme in replayed:
                error, alone = errors.get(scheme.name, _UNKNOWN), errors.get(_weights_alone(scheme), _UNKNOWN)
                effect.damage, effect.price, effect.price_stderr = error.damage, error.price, error.price_stderr
                effect.damage_weights_only = None if scheme.name in price_alone else alone.damage
            if effect.key in recorded.prices:
                effect.price, effect.price_stderr = recorded.prices[effect.key], None
    return effects


def _weights_alone(scheme: Scheme) -> str:
    """Names the variant in which weights are quantized as by this scheme, and inputs not at all."""
    return f"weights {scheme.weights}"


def _tick_all(schemes: Sequence[Scheme], price_alone: Container[str], progress: Advance) -> None:
    """As often as replaying a group under these schemes would."""
    for _ in range(len(schemes) + len(_weight_variants(schemes, price_alone))):
        progress()


@dataclass(frozen=True, slots=True)
class CleanRun:
    """One call of a block, its hidden states [batch, tokens, hidden] without quantization, and what ran inside."""

    call: Call
    output: Tensor
    memo: Memo
    children: Mapping[str, ModuleCall]
    """Calls of the children in residual branches; those that did not run exactly once are not among them."""


def clean_runs(
    block: nn.Module,
    path: str,
    groups: Sequence[Group],
    calls: Sequence[Call],
    branches: ResidualBranches,
    *,
    memo_bytes: int | None = None,
) -> list[CleanRun]:
    """Every call run once more unmodified. Beyond `memo_bytes`, MEMO_BYTES by default, memos stay empty, and replays
    compute all again.
    """
    most = MEMO_BYTES if memo_bytes is None else memo_bytes
    members = [inner_paths(group, path) for group in groups]
    in_chains = {child for group in groups if group.name in branches for child in branches[group.name].chain}
    runs, held = [], 0
    for call in calls:
        output, memo = record(block, call.args, call.kwargs)
        children = {child: call for child, call in memo.calls.items() if child in in_chains and call.untouched}
        held += memo.prune(members)
        runs.append(CleanRun(call, output, memo if held <= most else Memo(), children))
    return runs


def _memo_bytes(experiment: Experiment, index: int) -> int | None:
    """What a budget leaves for memos, once a block is there and a group of it quantized; None without a budget."""
    weights = experiment.weights
    if weights is None or weights.budget is None:
        return None
    weights.bring(index)
    return min(MEMO_BYTES, max(0, weights.budget - resident_bytes() - weights.bytes[index] - PROGRAM))


def inner_paths(group: Group, block: str) -> list[str]:
    """Members of a group by their paths inside the block."""
    return [member.removeprefix(f"{block}.") for member in group.members]


def steps(
    experiment: Experiment, only: Mapping[str, Container[str]] | None = None, *, price_alone: Container[str] = ()
) -> int:
    """How often `replay_groups` will call `progress`."""
    inside = [schemes_of(experiment, group, only) for group in experiment.groups if group.layer is not None]
    return sum(len(schemes) + len(_weight_variants(schemes, price_alone)) for schemes in inside)


@dataclass(slots=True)
class _Replay:
    """One group in its block at `path`, with the block's clean runs. factors: by scheme name, where it is smoothed.
    damage: names of the schemes under which it is measured.
    """

    experiment: Experiment
    path: str
    group: Group
    runs: Sequence[CleanRun]
    branch: ResidualBranch
    factors: Mapping[str, Tensor]
    damage: Container[str]
    weights: dict[tuple[str, int], dict[str, Tensor]] = field(default_factory=dict)
    """Changed weights by how they are quantized and by factor, then by member."""

    def variants(
        self, schemes: Sequence[Scheme], alone: Sequence[Scheme], progress: Advance, weights_only: bool
    ) -> Variants:
        """Every call under each scheme. alone: those whose weights are replayed alone too, once where alike.

        Weights are in memory under one way to quantize them at a time: all experts of a layer are one group.
        """
        variants: Variants = {}
        for alike in _by_weights(schemes):
            for scheme in alike:
                if scheme not in alone:
                    continue
                if weights_only and scheme.name not in self.factors:
                    variants[_weights_alone(scheme)] = self.replay(scheme, None)
                progress()
            for scheme in alike:
                calls = self.under(scheme, variants.get(_weights_alone(scheme)))
                if calls is not None:
                    variants[scheme.name] = calls
                progress()
            self.weights.clear()
        return variants

    def under(self, scheme: Scheme, weights_alone: list[CallSums] | None) -> list[CallSums] | None:
        """Every call under one scheme; None where it has no finite range. weights_alone: where replayed."""
        qparams = self.experiment.ranges.of(scheme, self.group)
        if scheme.input_activations is None and weights_alone is not None:
            return weights_alone
        if scheme.static and qparams is None:
            return None
        device, factor = self.runs[0].output.device, self.factors.get(scheme.name)
        return self.replay(scheme, input_quantizer(scheme, qparams, device, factor=factor))

    def replay(self, scheme: Scheme, quantizer: InputQuantizer | None) -> list[CallSums]:
        """Every recorded call, with this group quantized."""
        block = self.experiment.model.get_submodule(self.path)
        members, with_damage = inner_paths(self.group, self.path), scheme.name in self.damage
        weights, inputs = self.changed_weights(scheme), {self.group.name: quantizer}
        calls = []
        with quantized(self.experiment.model, [self.group], weights, inputs):
            for run in self.runs:
                with remembered(block, run.memo, members):
                    output, y = self.run_block(block, run) if with_damage else self.run_branch(block, run)
                calls.append(self.compared(run, output, y))
        return fetched(calls)

    def compared(self, run: CleanRun, output: Tensor | None, y: Tensor | None) -> PendingCall:
        """One call against its clean run. output, y: of block and residual branch; None for what did not run."""
        gradients, clean = run.call.output_gradients.get(self.branch.path), self.clean_branch_output(run)
        prices = None if gradients is None else list[Tensor]()
        squares = None
        if gradients and clean is not None and y is not None:
            terms = [fisher_kl(gradient, clean, y) for gradient in gradients]
            prices = [term.sum() for term in terms]
            squares = torch.stack([term.square().sum() for term in terms]).sum()
        return PendingCall(
            number=run.call.number,
            rows=run.output.shape[:-1].numel(),
            tokens=run.output.shape[:2].numel(),
            damage=None if output is None else block_damage(run.output, output),
            prices=prices,
            squares=squares,
        )

    def run_block(self, block: nn.Module, run: CleanRun) -> tuple[Tensor, Tensor | None]:
        """Outputs of the block and of the residual branch; None for a branch that did not run."""
        outputs: list[Tensor] = []
        module = block.get_submodule(self.branch.path)
        with watch_outputs(module, lambda _m, _a, _k, output: outputs.append(first_tensor(output))):
            output = first_tensor(block(*run.call.args, **run.call.kwargs))
        return output, outputs[-1] if outputs else None

    def run_branch(self, block: nn.Module, run: CleanRun) -> tuple[None, Tensor | None]:
        """Output of the residual branch alone, with as little run as that takes; None where it did not run."""
        if not self.branch.chain:
            return None, self.run_block(block, run)[1]
        if self.clean_branch_output(run) is None:
            return None, None
        first, *others = self.branch.chain
        call = run.children[first]
        y = first_tensor(block.get_submodule(first)(*call.args, **call.kwargs))
        for path in others:
            y = first_tensor(block.get_submodule(path)(y))
        return None, y

    def clean_branch_output(self, run: CleanRun) -> Tensor | None:
        """Output of the residual branch in the clean run; None where it did not run."""
        if not self.branch.chain:
            return run.output
        ran = all(path in run.children for path in self.branch.chain)
        return first_tensor(run.children[self.branch.path].output) if ran else None

    def changed_weights(self, scheme: Scheme) -> dict[str, Tensor]:
        """By member; computed once for all schemes that change weights alike."""
        factor = self.factors.get(scheme.name)
        if scheme.weights is None and factor is None:
            return {}
        key = (str(scheme.weights), id(factor))
        if key not in self.weights:
            if scheme.weights is not None and factor is None:
                args = dict.fromkeys(self.group.members, scheme.weights)
                self.weights[key] = plan_weights(self.experiment.model, args)
            else:
                self.weights[key] = {
                    member: quantize_linear(self.experiment.model.get_submodule(member), scheme.weights, factor)
                    for member in self.group.members
                }
        return self.weights[key]


def _by_weights(schemes: Sequence[Scheme]) -> list[list[Scheme]]:
    """Schemes that quantize weights alike, together."""
    alike: dict[str, list[Scheme]] = {}
    for scheme in schemes:
        alike.setdefault(str(scheme.weights), []).append(scheme)
    return list(alike.values())


def _weight_variants(schemes: Sequence[Scheme], without: Container[str] = ()) -> list[Scheme]:
    """One scheme for each distinct way to quantize weights. without: names of schemes that ask for none."""
    chosen = [scheme for scheme in schemes if scheme.weights is not None and scheme.name not in without]
    return list({str(scheme.weights): scheme for scheme in chosen}.values())
