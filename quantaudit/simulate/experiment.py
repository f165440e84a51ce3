"""An experiment: a model, the tokens it is evaluated on, the schemes to simulate, and their calibrated input ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.measure.profile import Profile
from quantaudit.model.blockwise.block_weights import BlockWeights
from quantaudit.model.sites import Architecture, Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.ranges import site_qparams
from quantaudit.quant.schemes import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRanges:
    """Calibrated quantization parameters of fused groups' inputs: by scheme name, then by group name."""

    by_scheme: Mapping[str, Mapping[str, QParams | None]] = field(default_factory=dict)

    @classmethod
    def measured(cls, profile: Profile, schemes: Sequence[Scheme], groups: Sequence[Group]) -> InputRanges:
        """Ranges of every static scheme from the profile's calibration split, by the scheme's observer."""
        return cls(
            by_scheme={
                scheme.name: {
                    group.name: site_qparams(profile, group.site, scheme.input_activations, scheme.observer)
                    for group in groups
                }
                for scheme in schemes
                if scheme.static and scheme.input_activations is not None and scheme.observer is not None
            }
        )

    def of(self, scheme: Scheme, group: Group) -> QParams | None:
        """One group's parameters; None for a scheme without a static range, or where the range is not finite."""
        return self.by_scheme.get(scheme.name, {}).get(group.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What is simulated, and on which tokens.

    architecture: its groups are those that are quantized, which may be fewer than the model's. samples: evaluation
    tokens. weights: of the decoder blocks, where they are on disk. ranges: of the static schemes among `schemes`.
    """

    model: Any
    architecture: Architecture
    samples: Sequence[TokenizedSample]
    weights: BlockWeights | None = None
    schemes: Sequence[Scheme] = ()
    ranges: InputRanges = field(default_factory=InputRanges)

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter is."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def groups(self) -> tuple[Group, ...]:
        """Fused groups, in the order of the forward pass."""
        return self.architecture.groups

    def only(self, groups: Sequence[Group]) -> Experiment:
        """The same experiment on some of the groups."""
        return replace(self, architecture=replace(self.architecture, groups=tuple(groups)))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOptions:
    """How fused groups are predicted. score: where prices come from, one of SCORES. single: how many groups are
    simulated alone too; None for all. price_alone: names of schemes whose groups are priced without a damage of their
    own, for half the replay, where prices come from gradients.
    """

    score: str = "auto"
    single: int | None = 0
    price_alone: frozenset[str] = frozenset()
