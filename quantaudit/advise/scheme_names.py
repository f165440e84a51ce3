"""Schemes of a card by the names that people give them: presets, our own, other group sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantaudit.common.choices import of_any_group_size, parse_scheme_set
from quantaudit.errors import UsageError
from quantaudit.simulate.allocation import order_dependent
from quantaudit.simulate.records import SchemeInfo, Simulation

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme


def kl_of_scheme(name: str, simulation: Simulation) -> float:
    """KL of all groups in a scheme of `--as-good-as`, as a card simulated it, in nats per token.

    Raises UsageError where it was not simulated, or came to nothing finite.
    """
    simulated = {row.name: row.kl for row in simulation.recipes if row.kl and not row.nonfinite}
    infos = [info for info in simulation.schemes if info.name in simulated]
    try:
        found = next(_alike(name, infos), None)
    except UsageError as error:
        hint = "`dynamic` is for a RECIPE, with --model" if name == "dynamic" else error.hint
        raise UsageError(error.message, where=f"--as-good-as {name}", hint=hint) from error
    if found is None:
        raise UsageError(
            "this card has no KL of it",
            where=f"--as-good-as {name}",
            hint=f"one of {', '.join(info.name for info in infos)}, or `quantaudit report --scheme {name}` first",
        )
    return simulated[found] or 0.0


def offered_schemes(simulation: Simulation, text: str | None) -> list[str] | None:
    """Names, on a card, of the schemes of `--schemes`: sets and names with commas. None where it is not given.

    A scheme of another group size than is asked for is the same one, fitted to the model. Raises UsageError for a name
    that is unknown, or that the card has no price of; of a set there may be fewer, and none whose ranges depend on the
    order of samples.
    """
    if text is None:
        return None
    names, of_sets = parse_scheme_set(text)
    priced = {row.scheme for row in simulation.groups if row.price is not None}
    infos = [info for info in simulation.schemes if info.name in priced]
    chosen: dict[str, None] = {}
    for name in names:
        found = next(_alike(name, [info for info in infos if name not in of_sets or not order_dependent(info)]), None)
        if found is not None:
            chosen[found] = None
        elif name not in of_sets:
            raise UsageError(
                "this card has no prices of it",
                where=f"--schemes {name}",
                hint=f"one of {', '.join(info.name for info in infos)}, or `quantaudit report --scheme {name}` first",
            )
    return list(chosen)


def _alike(name: str, infos: list[SchemeInfo]) -> Iterator[str]:
    """Schemes of this name, then of this name but for its group size, then those that a preset of this name means, then
    those that a card calls by it, such as W8A16.
    """
    yield from (info.name for info in infos if info.name == name)
    yield from (info.name for info in infos if of_any_group_size(info.name) == of_any_group_size(name))
    # What a preset means, compressed-tensors knows, with which torch comes.
    from quantaudit.quant.schemes import find_scheme
    from quantaudit.simulate.scheme_info import info_scheme, scheme_info

    asked = _arithmetic(info_scheme(scheme_info(find_scheme(name))))
    yield from (info.name for info in infos if _arithmetic(info_scheme(info)) == asked)
    yield from (info.name for info in infos if info.title.partition(":")[0].casefold() == name.casefold())


def _arithmetic(scheme: QuantizationScheme) -> str:
    """What a scheme does, whatever the size of its groups."""
    from quantaudit.recipe.digest import identity

    return re.sub(r'"group_size": [0-9]+', "", identity(scheme))
