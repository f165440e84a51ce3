"""A recipe as resolved on a model: the scheme of every module, and what changes weights before they are rounded.

What a simulation, an estimate or an advice needs of a recipe, whatever file it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compressed_tensors.quantization import QuantizationScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothQuant:
    """One SmoothQuantModifier, resolved on a model.

    algorithm, strength: its arguments. mappings: in its order, the module whose output is divided, channel by channel
    (the smooth layer), and the Linears that read it, whose weights are multiplied (the balance layers).
    """

    algorithm: str
    strength: float
    mappings: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def smooth_layers(self) -> frozenset[str]:
        """Modules whose output becomes smaller."""
        return frozenset(smooth for smooth, _ in self.mappings)

    @property
    def balance_layers(self) -> frozenset[str]:
        """Linears whose input becomes smaller."""
        return frozenset(path for _, balance_layers in self.mappings for path in balance_layers)

    @property
    def changed(self) -> frozenset[str]:
        """Modules whose weights change."""
        return self.smooth_layers | self.balance_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRecipe:
    """What a recipe does to a model. schemes: by module path. smooth: what it does to weights before it rounds them.

    unsimulated: what it does in addition, in words. digest: SHA-256 of all of it (`recipe.digest`).
    """

    name: str
    schemes: Mapping[str, QuantizationScheme]
    digest: str
    smooth: tuple[SmoothQuant, ...] = ()
    unsimulated: tuple[str, ...] = ()

    @property
    def calibration_passes(self) -> int:
        """How often a plan of this recipe runs the calibration split: never where nothing is smoothed."""
        return len(self.smooth) + 1 if self.smooth else 0
