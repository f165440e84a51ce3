"""Plans applied to one decoder block at a time, of a model whose weights are on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn

from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.forward.hooks import Arguments, Keywords, replace_inputs
from quantaudit.quant.schemes import global_scaled
from quantaudit.simulate.quantized.modules import InputQuantizer, quantized_modules
from quantaudit.simulate.quantized.plan import Plan, plan_weights, weights_in_turn


@dataclass(slots=True, kw_only=True)
class PlansByBlock:
    """Several plans, each of which quantizes what is in memory of a model; within `entered`.

    A block's weights are quantized in place of the stored ones, which are read again where the next plan quantizes
    others. What plans make of weights outside the blocks is kept for as long as this lives.
    """

    model: Any
    weights: BlockWeights
    plans: Sequence[Plan]
    _parts: list[dict[int | None, Plan]] = field(default_factory=list, init=False)
    _outside: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False)
    _inputs: dict[tuple[int, int | None], dict[str, InputQuantizer | None]] = field(default_factory=dict, init=False)
    _plan: int | None = field(default=None, init=False)
    _block: int | None = field(default=None, init=False)
    _quantized: dict[str, QuantizationArgs] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for plan in self.plans:
            paths: dict[int | None, list[str]] = {}
            for path in plan.schemes:
                paths.setdefault(self.weights.index_of(path), []).append(path)
            self._parts.append({block: plan.only(inside) for block, inside in paths.items()})

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The context of a whole run: inputs of modules outside the blocks go through what the plan of the moment says.

        A batch may wait before such a module, which PyTorch asks for its hooks before that.
        """
        paths = {path: None for parts in self._parts if None in parts for path in parts[None].active}
        with ExitStack() as stack:
            for path in paths:
                stack.enter_context(replace_inputs(self.model.get_submodule(path), partial(self._outer_input, path)))
            yield

    def _outer_input(
        self, path: str, _module: nn.Module, args: Arguments, kwargs: Keywords
    ) -> tuple[Arguments, Keywords] | None:
        quantizer = None if self._plan is None else self._quantizers(self._plan, None).get(path)
        return None if quantizer is None else ((quantizer(args[0]), *args[1:]), kwargs)

    @contextmanager
    def applied(self, plan: int | None, block: int | None) -> Iterator[None]:
        """Within the context a plan quantizes the modules of a block and those outside of all; None for no plan.

        block: that the model is about to run, whose weights are brought; None where it runs none.
        """
        if block is not None:
            self._have(block, {} if plan is None else self._part(plan, block).weight_args)
        if plan is None:
            yield
            return
        if plan not in self._outside:
            self._outside[plan] = plan_weights(self.model, self._part(plan, None).weight_args)
        self._plan = plan
        try:
            with quantized_modules(
                self.model, self._outside[plan], {} if block is None else self._quantizers(plan, block)
            ):
                yield
        finally:
            self._plan = None

    def _part(self, plan: int, block: int | None) -> Plan:
        return self._parts[plan].get(block) or self.plans[plan].only(())

    def _quantizers(self, plan: int, block: int | None) -> Mapping[str, InputQuantizer | None]:
        if (plan, block) not in self._inputs:
            device: torch.device = next(self.model.parameters()).device
            self._inputs[plan, block] = self._part(plan, block).inputs(device)
        return self._inputs[plan, block]

    def _have(self, block: int, wanted: Mapping[str, QuantizationArgs]) -> None:
        """Have the weights of a block quantized so, and no others of it."""
        if block != self._block:
            self._inputs = {key: held for key, held in self._inputs.items() if key[1] is None}
            self._read(block)
        if not self._goes_on_to(wanted):
            self._read(block)
        missing = {path: args for path, args in wanted.items() if path not in self._quantized}
        for part in weights_in_turn(self.model, missing):
            for path, weight in part.items():
                self.weights.change(path, weight)
        self._quantized = dict(wanted)

    def _read(self, block: int) -> None:
        self.weights.bring(block)
        self._block, self._quantized = block, {}

    def _goes_on_to(self, wanted: Mapping[str, QuantizationArgs]) -> bool:
        """Whether nothing is quantized otherwise than wanted; a shared scale depends on all who share it."""
        if any(str(wanted.get(path)) != str(args) for path, args in self._quantized.items()):
            return False
        return len(wanted) == len(self._quantized) or not any(map(global_scaled, self._quantized.values()))
