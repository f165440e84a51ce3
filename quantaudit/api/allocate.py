"""`quantaudit.allocate`: a card and a budget of bytes or of KL → the best recipe of the schemes that have prices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from quantaudit.api.arguments import card_of, path_of

if TYPE_CHECKING:
    from quantaudit.card.schema import Card
    from quantaudit.pipeline.advise import AllocatedRecipe


class BudgetOptions(TypedDict, total=False):
    """One of these, as `advise` has them; max_compute alone or with another, minimize with one of KL."""

    max_bits: float
    max_bytes: int | str
    max_kl: float
    as_good_as: str
    verdict: str
    max_compute: float
    minimize: Literal["bytes", "compute"]


def allocate(
    card: Card | str | Path,
    *,
    schemes: str | None = None,
    unquantized: bool = False,
    hardware: str | Path | None = None,
    policy: str | Path = "default",
    out: str | Path | None = None,
    **budget: Unpack[BudgetOptions],
) -> AllocatedRecipe:
    """The best recipe within a budget, from a card alone: what `quantaudit advise` does without a recipe.

    budget: max_bits a quantizable weight, scales included; max_bytes of all weights, such as "9GiB"; max_kl as
    estimated, nats per token; as_good_as a scheme in all groups, by name; or verdict, `ready` or `care`, whose limit
    the whole interval lies below. Alone or with one of these, max_compute, the time of multiply-accumulates on the
    hardware as a share of the unquantized model's; with one of KL, minimize "bytes" or "compute". schemes: with commas,
    all by default whose ranges do not depend on the order of samples. unquantized: whether groups may be left as they
    are. hardware: where it is to run, by name or as a .yaml table; what that does not run is not offered. out: file to
    write. Raises UsageError where nothing is within the budget, and other QuantauditErrors.

    >>> allocated = quantaudit.allocate("quantaudit-demo/card.json", max_bits=9)
    >>> allocated.allocation.point.bits <= 9
    True
    """
    from quantaudit.advise.allocate import allocate as run
    from quantaudit.advise.budget import Budget
    from quantaudit.advise.scheme_names import offered_schemes
    from quantaudit.common.outputs.claims import Output, claimed
    from quantaudit.errors import UsageError
    from quantaudit.model.blockwise.memory import parse_size
    from quantaudit.policy import load_policy
    from quantaudit.simulate.allocation import load_hardware

    if unknown := budget.keys() - BudgetOptions.__annotations__.keys():
        known = ", ".join(BudgetOptions.__annotations__)
        raise UsageError("unknown option", where=", ".join(sorted(unknown)), hint=f"one of {known}")
    size = budget.get("max_bytes")
    chosen = Budget(
        max_bits=budget.get("max_bits"),
        max_bytes=parse_size(size, "max_bytes") if isinstance(size, str) else size,
        max_kl=budget.get("max_kl"),
        as_good_as=budget.get("as_good_as"),
        verdict=budget.get("verdict"),
        max_compute=budget.get("max_compute"),
        minimize=budget.get("minimize", "bytes"),
    )
    machine = None if hardware is None else load_hardware(str(hardware))
    rules, read = load_policy(str(policy)), card_of(card)
    names = None if read.simulation is None else offered_schemes(read.simulation, schemes)
    allocation = run(read, chosen, rules, schemes=names, unquantized=unquantized, hardware=machine)

    from quantaudit.pipeline.advise import write_allocation

    allocated = write_allocation(allocation, chosen.in_words(rules), rules)
    if out is not None:
        inputs = {"card": Path(card)} if isinstance(card, str | Path) else {}
        with claimed([Output(option="out", path=path_of(out, "out"))], inputs):
            allocated.write(path_of(out, "out"))
    return allocated
