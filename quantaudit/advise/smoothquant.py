"""Which fused groups SmoothQuant reaches by themselves, and what each strength would make of their inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.measure.profile import Profile
from quantaudit.model.sites import Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.ranges import site_qparams
from quantaudit.quant.schemes import Scheme
from quantaudit.recipe.modifiers.smoothquant import inferred
from quantaudit.recipe.patterns import kind_and_numbers
from quantaudit.recipe.resolved import SmoothQuant
from quantaudit.simulate.cost import SMOOTHING
from quantaudit.simulate.opened_recipe import OpenedRecipe
from quantaudit.simulate.quantized.smoothquant import (
    CalibratedSmoothQuant,
    Ranges,
    calibration_tokens,
    measured_smoothed,
    observed_ranges,
    smoothed,
)

ALGORITHM = "smoothquant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothable:
    """Groups that SmoothQuant can smooth, each by itself.

    mappings: by group, the norm whose output its members read, and no one else, and those members.
    ranges: of the norms' outputs over the calibration samples. profiles: by strength, the statistics of the groups'
    inputs where all of them are smoothed. factors: by strength and group, what its input is divided by, [in_features].
    """

    mappings: Mapping[str, tuple[str, tuple[str, ...]]]
    ranges: Ranges
    profiles: Mapping[float, Profile]
    factors: Mapping[float, Mapping[str, Tensor]]

    def smooth(self, chosen: Mapping[str, float]) -> tuple[SmoothQuant, ...]:
        """One step for each strength among the chosen groups (by name), weakest first; norms of one kind together.

        That is the order in which one pattern for all layers resolves. No norm stands in two mappings, so that it
        changes nothing.
        """
        return tuple(
            SmoothQuant(algorithm=ALGORITHM, strength=strength, mappings=tuple(self._in_order(chosen, strength)))
            for strength in sorted(set(chosen.values()))
        )

    def _in_order(self, chosen: Mapping[str, float], strength: float) -> list[tuple[str, tuple[str, ...]]]:
        mappings = [self.mappings[group] for group, other in chosen.items() if other == strength]
        return sorted(mappings, key=lambda mapping: kind_and_numbers(mapping[0]))

    def calibrated(self, chosen: Mapping[str, float]) -> tuple[CalibratedSmoothQuant, ...]:
        """The same with what was observed: ranges of one norm do not depend on whether another is smoothed."""
        return tuple(
            CalibratedSmoothQuant(spec=spec, ranges={path: self.ranges[path] for path in spec.smooth_layers})
            for spec in self.smooth(chosen)
        )

    def qparams(self, group: Group, strength: float, scheme: Scheme) -> QParams | None:
        """The static range of a smoothed input; None where it is not finite, or the scheme has none."""
        if scheme.input_activations is None or scheme.observer is None:
            return None
        return site_qparams(self.profiles[strength], group.site, scheme.input_activations, scheme.observer)


def find_smoothable(
    opened: OpenedRecipe, groups: Sequence[Group], strengths: Sequence[float], stages: Stages = silent_stages
) -> Smoothable | None:
    """Observe the norms before `groups`, and the groups' inputs under every strength. None where there is no such norm.

    The calibration split of the profile's samples is run once, and once for every strength.
    """
    model, profile, samples = opened.loaded.model, opened.profile, opened.corpus.samples
    mappings = reached(model, groups)
    if not mappings:
        return None
    advance = stages(SMOOTHING, calibration_tokens(samples) * (1 + len(strengths)), "tokens")
    ranges = observed_ranges(
        model, profile, samples, frozenset(norm for norm, _ in mappings.values()), progress=advance
    )
    sites = {group.name: group.site for group in groups}
    mappings = {
        name: mapping for name, mapping in mappings.items() if _alone(sites[name], ranges.get(mapping[0]), profile)
    }
    observed = Smoothable(mappings=mappings, ranges=ranges, profiles={}, factors={})
    profiles, factors = {}, {}
    for strength in strengths:
        steps = observed.calibrated(dict.fromkeys(mappings, strength))
        profiles[strength] = measured_smoothed(
            model, profile, samples, steps, [sites[name] for name in mappings], progress=advance
        )
        with smoothed(model, steps) as divisors:
            factors[strength] = {name: divisors[members[0]] for name, (_, members) in mappings.items()}
    return replace(observed, profiles=profiles, factors=factors) if mappings else None


def reached(model: nn.Module, groups: Sequence[Group]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """By group, its mapping among those that llm-compressor infers, where the mapping has the group's members alone.

    Norms of more than one mapping are left out: only the first would be smoothed.
    """
    mappings = inferred(model)
    norms = Counter(norm for norm, _ in mappings)
    by_members = {frozenset(layers): (norm, layers) for norm, layers in mappings if norms[norm] == 1}
    return {group.name: by_members[key] for group in groups if (key := frozenset(group.members)) in by_members}


def _alone(site: str, ranges: tuple[Tensor, Tensor] | None, profile: Profile) -> bool:
    """Whether a group's input is the norm's output, and no other group's is, by each channel's absolute maximum.

    Inferred mappings can name a norm whose output goes elsewhere (Gemma), which smoothing would break.
    """
    if ranges is None or profile.split(site, "calibration") is None:
        return False
    amax = np.maximum(-ranges[0].float().cpu().numpy(), ranges[1].float().cpu().numpy())
    same = [
        other.name
        for other in profile.sites
        if other.kind == "linear_input"
        and (statistics := profile.split(other.name, "calibration")) is not None
        and statistics.channel_amax.shape == amax.shape
        and np.allclose(statistics.channel_amax, amax, rtol=0.02)
    ]
    return same == [site]
