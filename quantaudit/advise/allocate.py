"""The best schemes within a budget, from a card alone: estimated, not simulated. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantaudit.advise.budget import Budget
from quantaudit.card.schema import Card
from quantaudit.errors import FormatError, UsageError
from quantaudit.policy import Policy
from quantaudit.simulate.allocation import Hardware, Limit, Menu, Point, Serving, menu_of, solve, uniform
from quantaudit.simulate.allocation.plain import solve_plainly
from quantaudit.simulate.records import Simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """All groups in one scheme, and what a mixture of the menu comes to in as many bytes, and as much compute."""

    title: str
    point: Point
    mixture: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The schemes that are advised. menu: what they were chosen from, for good; references: what they compare with."""

    card: Card
    menu: Menu
    point: Point
    references: tuple[Reference, ...]

    def members(self, scheme: str | None) -> list[str]:
        """Linears of the groups that a scheme is given to, in the order of the model."""
        return [
            member
            for group, name in self.point.schemes.items()
            if name == scheme
            for member in self.menu.members[group]
        ]

    @property
    def calibrated(self) -> bool:
        """Whether llm-compressor needs samples of text for some chosen scheme."""
        inputs = [self.menu.schemes[name].input_activations for name in self.point.schemes.values() if name is not None]
        return any(args is not None and args.get("dynamic") is not True for args in inputs)


def allocate(
    card: Card,
    budget: Budget,
    policy: Policy,
    *,
    schemes: Sequence[str] | None = None,
    unquantized: bool = False,
    hardware: Hardware | None = None,
) -> Allocation:
    """The best schemes within a budget. schemes, unquantized: as for `menu_of`; intervals are the policy's.

    hardware: what the recipe is to run on; what that does not run is not offered. Raises FormatError for a card without
    prices, UsageError for a budget that no recipe of this menu is within, and for one of compute without hardware.
    """
    if budget.of_compute and hardware is None:
        raise UsageError(
            "compute is that of a machine",
            where=str(budget) if budget.max_compute is not None else f"--minimize {budget.minimize}",
            hint="say which: --hardware hopper, or a .yaml table",
        )
    every = menu_of(
        simulation_of(card),
        card.model,
        level=policy.evaluation.level,
        margin=policy.gate.estimate.margin,
        schemes=schemes,
        unquantized=unquantized,
        serving=None if hardware is None else Serving(hardware, _tokens(card)),
    )
    limit = budget.limit(every, policy, simulation_of(card))
    try:
        menu, point = solve_plainly(every, limit)
    except UsageError as error:
        raise UsageError(error.message, where=str(budget), hint=error.hint) from error
    if all(scheme is None for scheme in point.schemes.values()):
        if budget.of_kl:
            raise UsageError(
                "no scheme on the menu is within it, for any group: only the unquantized model is",
                where=str(budget),
                hint="allow a larger KL",
            )
        raise UsageError(
            "nothing has to be quantized for it",
            where=str(budget),
            hint="give a smaller one, or leave --unquantized out",
        )
    return Allocation(card=card, menu=menu, point=point, references=tuple(_references(every)))


def simulation_of(card: Card) -> Simulation:
    """The card's simulation. Raises FormatError for a card without one."""
    if card.simulation is None:
        raise FormatError(
            "the card holds no simulation, and so no prices to choose by",
            where=card.model.name,
            hint="make the card again with `quantaudit report`",
        )
    return card.simulation


def _tokens(card: Card) -> dict[str, int]:
    """By Linear, how many tokens it, or the experts that it is the first of, read of the card's corpus."""
    return {site.module: site.tokens for site in card.sites if site.tap == "input"}


def _references(menu: Menu) -> Iterator[Reference]:
    for name, info in menu.schemes.items():
        point = uniform(menu, name)
        if point is not None:
            yield Reference(
                title=info.title,
                point=point,
                mixture=solve(menu, Limit(max_size=point.size, max_compute=point.compute)),
            )
