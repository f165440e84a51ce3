"""What callers give: specs and paths as `str` or `Path`, or the objects themselves; and whether progress is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.settings import CaseSpec

if TYPE_CHECKING:
    from quantaudit.card.schema import Card
    from quantaudit.measure.profile import Profile
    from quantaudit.model.loading.load import LoadedModel
    from quantaudit.simulate.records import Simulation

Say = Callable[[str], None]


def profile_of(given: Profile | str | Path) -> Profile:
    """A profile, read where a path is given."""
    from quantaudit.measure.profile import load_profile

    return load_profile(given) if isinstance(given, str | Path) else given


def card_of(given: Card | str | Path) -> Card:
    """A card, read where a path is given."""
    from quantaudit.card.schema import load_card

    return load_card(given) if isinstance(given, str | Path) else given


def simulation_of(given: Simulation | str | Path | None) -> Simulation | None:
    """A simulation, read where a path is given."""
    from quantaudit.simulate.records import load_simulation

    return load_simulation(Path(given)) if isinstance(given, str | Path) else given


def model_of(given: Any, tokenizer: Any) -> tuple[str, LoadedModel | None]:
    """The spec of a model, and the model itself where it is in memory already. Raises UsageError."""
    if isinstance(given, str | Path):
        return str(given), None
    from quantaudit.model.loading.in_memory import loaded_in_memory

    loaded = loaded_in_memory(given, tokenizer)
    return loaded.info.spec, loaded


def case_of(recipe: str | Path, card: str | Path, options: dict[str, Any]) -> CaseSpec:
    """A case whose model, where none is given, is the one that its card names. Raises FormatError for the card."""
    given = {name: value for name, value in options.items() if value is not None}
    model = given.pop("model", None) or card_of(card).model.spec
    if "profile" in given:
        given["profile"] = Path(given["profile"])
    if "corpus" in given:
        given["corpus"] = str(given["corpus"])
    return CaseSpec(recipe=Path(recipe), card=Path(card), model=str(model), **given)


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options with paths of recipes as paths, and lists as tuples."""
    sequences = {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
    options = options | sequences
    if "recipes" in options:
        options["recipes"] = tuple(map(Path, options["recipes"]))
    return options


@contextmanager
def shown(progress: bool | None) -> Iterator[tuple[Stages, Say]]:
    """What opens the stages of a job, and what takes a line. None: shown in a terminal and in a notebook."""
    if progress is False or (progress is None and not (sys.stderr.isatty() or "ipykernel" in sys.modules)):
        yield silent_stages, lambda text: None
        return
    from rich.console import Console
    from rich.markup import escape

    from quantaudit.common.display import progress as display

    # Not as HTML: lines from another thread would end up in whichever cell runs.
    console = Console(stderr=True, force_jupyter=False)
    with display(console) as stages:
        yield stages, lambda text: console.print(escape(text), highlight=False, soft_wrap=True)
