"""Working state of a simulation: one fused group under one scheme, filled in stage by stage. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantaudit.simulate.records import GroupRow

if TYPE_CHECKING:
    from quantaudit.model.groups import Group
    from quantaudit.quant.schemes import Scheme


FinishedEffect = tuple[str, str, float | None, float | None, float | None, float | None]
"""(group name, scheme name, damage, damage of weights only, price, its error): what replays make of an effect."""


@dataclass(slots=True, kw_only=True)
class GroupEffect:
    """The effect on the model of quantizing one fused group alone, filled in by one stage after the other.

    None where it is not measured, or not finite. Units and meanings are those of `GroupRow`. price_stderr: of a price
    from gradients, nats per token, by chance of the labels that were drawn.
    """

    group: Group
    scheme: Scheme
    damage: float | None = None
    damage_weights_only: float | None = None
    price: float | None = None
    price_stderr: float | None = None
    price_simulated: bool = False
    price_low: float | None = None
    price_high: float | None = None
    kl: float | None = None
    kl_stderr: float | None = None
    sampled: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """(group name, scheme name)."""
        return self.group.name, self.scheme.name

    @property
    def finished(self) -> FinishedEffect:
        """What a run that is interrupted keeps after replays."""
        return *self.key, self.damage, self.damage_weights_only, self.price, self.price_stderr

    @property
    def in_block(self) -> bool:
        """Whether the group is inside the decoder blocks."""
        return self.group.layer is not None

    def to_row(self) -> GroupRow:
        """The row of the output."""
        return GroupRow(
            group=self.group.name,
            projection=self.group.projection,
            members=list(self.group.members),
            layer=self.group.layer,
            scheme=self.scheme.name,
            damage=self.damage,
            damage_weights_only=self.damage_weights_only,
            price=self.price,
            price_simulated=self.price_simulated,
            price_low=self.price_low,
            price_high=self.price_high,
            kl=self.kl,
            kl_stderr=self.kl_stderr,
            sampled=self.sampled,
        )
