"""What a recipe assigns to one fused group, with what a card knows of that group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantaudit.card.schema import SiteRow
from quantaudit.gate.scheme_summary import SchemeSummary
from quantaudit.simulate.records import GroupRow, TensorErrorRow


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAssignment:
    """One fused group under the recipe.

    schemes: how members are quantized → those members; None for those that are left alone.
    site: its measured input. inputs: the card's name for the static scheme of that input, under the default constant of
    a moving average. errors: of the input under it. row: damage and price under the same scheme as the recipe's, where
    the whole group has one that was simulated.
    """

    name: str
    projection: str
    layer: int | None
    members: tuple[str, ...]
    schemes: Mapping[SchemeSummary | None, tuple[str, ...]]
    site: SiteRow | None
    inputs: str | None
    errors: TensorErrorRow | None
    row: GroupRow | None

    @property
    def mixed(self) -> bool:
        """Whether members are treated differently."""
        return len(self.schemes) > 1

    @property
    def quantized(self) -> tuple[SchemeSummary, ...]:
        """How members are quantized, each way once; empty where the whole group is left alone."""
        return tuple(scheme for scheme in self.schemes if scheme is not None)

    @property
    def static(self) -> bool:
        """Whether any member's input has a range that calibration fixes."""
        return any(scheme.static for scheme in self.quantized)
