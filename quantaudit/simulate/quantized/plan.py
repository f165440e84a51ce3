"""A recipe resolved on a model, module by module, and what it makes of the model's weights and inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import Tensor, nn

from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import Scheme, global_scaled
from quantaudit.quant.weights import quantize_linears, scale_group
from quantaudit.recipe.digest import scheme_digest
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.quantized.modules import InputQuantizer, input_quantizer
from quantaudit.simulate.quantized.smoothquant import CalibratedSmoothQuant

TABLES = 1024
"""Static scales that are looked up in a table each; beyond them (thousands of experts) memory matters more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which scheme each Linear gets. schemes, qparams: by module path, the latter for schemes with a calibrated range.

    groups: fused groups touched. digest: of the recipe's resolved schemes. approximate, unsimulated: what of the recipe
    is only nearly, or not at all, in the plan. smoothed: what is done to weights before they are quantized.
    """

    name: str
    title: str
    schemes: Mapping[str, Scheme]
    qparams: Mapping[str, QParams | None]
    groups: int
    digest: str | None = None
    approximate: tuple[str, ...] = ()
    unsimulated: tuple[str, ...] = ()
    smoothed: tuple[CalibratedSmoothQuant, ...] = ()

    @classmethod
    def of_groups(
        cls,
        experiment: Experiment,
        *,
        name: str,
        title: str,
        schemes: Mapping[str, Scheme],
        with_digest: bool = False,
    ) -> Plan:
        """A plan of whole fused groups. schemes: by group name; other groups of the experiment stay unquantized.

        with_digest: whether a recipe that does the same is to be recognized by it.
        """
        members = {m: (schemes[g.name], g) for g in experiment.groups if g.name in schemes for m in g.members}
        return cls(
            name=name,
            title=title,
            schemes={member: scheme for member, (scheme, _) in members.items()},
            qparams={member: experiment.ranges.of(scheme, group) for member, (scheme, group) in members.items()},
            groups=len(schemes),
            digest=_digest({member: scheme for member, (scheme, _) in members.items()}) if with_digest else None,
        )

    @property
    def unscaled(self) -> list[str]:
        """Modules that need a calibrated range and have none that is finite."""
        return [path for path, scheme in self.schemes.items() if scheme.static and self.qparams.get(path) is None]

    @property
    def active(self) -> dict[str, Scheme]:
        """Modules that are quantized: those without a range are left alone."""
        missing = set(self.unscaled)
        return {path: scheme for path, scheme in self.schemes.items() if path not in missing}

    def only(self, paths: Sequence[str]) -> Plan:
        """What the plan does to these modules."""
        return replace(
            self,
            schemes={path: self.schemes[path] for path in paths if path in self.schemes},
            qparams={path: self.qparams[path] for path in paths if path in self.qparams},
        )

    @property
    def weight_args(self) -> dict[str, QuantizationArgs]:
        """How weights are quantized, by path of the module."""
        return {path: scheme.weights for path, scheme in self.active.items() if scheme.weights is not None}

    def inputs(self, device: torch.device) -> dict[str, InputQuantizer | None]:
        """What each module's input goes through. Modules of like scheme and range share a quantizer, and its work."""
        distinct: dict[tuple[str, int], InputQuantizer | None] = {}
        quantizers: dict[str, InputQuantizer | None] = {}
        for path, scheme in self.active.items():
            qparams = self.qparams.get(path)
            key = (scheme.name, id(qparams))
            if key not in distinct:
                distinct[key] = input_quantizer(scheme, qparams, device, table=len(distinct) < TABLES)
            quantizers[path] = distinct[key]
        return quantizers


def _digest(schemes: Mapping[str, Scheme]) -> str:
    """Of schemes by module path, whose observers are llm-compressor's own."""
    resolved = {
        scheme.name: QuantizationScheme(targets=[], weights=scheme.weights, input_activations=scheme.input_activations)
        for scheme in schemes.values()
    }
    return scheme_digest({path: resolved[scheme.name] for path, scheme in schemes.items()})


@dataclass(slots=True)
class PlanWeights:
    """Fake-quantized weights of the last plan, kept while the next one quantizes them alike."""

    key: dict[str, str] = field(default_factory=dict)
    smoothed: tuple[CalibratedSmoothQuant, ...] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def of(self, model: nn.Module, plan: Plan) -> dict[str, Tensor]:
        """Module path → weight, in its layout in the model, for every module whose scheme quantizes weights.

        model: smoothed as the plan says.
        """
        args_by_path = plan.weight_args
        key = {path: str(args) for path, args in args_by_path.items()}
        if key != self.key or plan.smoothed != self.smoothed:
            self.tensors = {}
            self.tensors = plan_weights(model, args_by_path)
            self.key, self.smoothed = key, plan.smoothed
        return self.tensors


def plan_weights(model: nn.Module, args_by_path: Mapping[str, QuantizationArgs]) -> dict[str, Tensor]:
    """Module path → fake-quantized weight; siblings of a fused projection under its one global scale."""
    return {path: weight for part in weights_in_turn(model, args_by_path) for path, weight in part.items()}


def weights_in_turn(model: nn.Module, args_by_path: Mapping[str, QuantizationArgs]) -> Iterator[dict[str, Tensor]]:
    """The same, a few modules at a time: those that share a scale."""
    seen: set[str] = set()
    shared = [path for path, args in args_by_path.items() if global_scaled(args)]
    for path, args in args_by_path.items():
        if path not in seen:
            paths = scale_group(path, shared) if global_scaled(args) else [path]
            quantized = quantize_linears([model.get_submodule(name) for name in paths], args)
            seen.update(paths)
            yield dict(zip(paths, quantized, strict=True))
