"""What callers give: specs and paths as `str` or `Path`, or the objects themselves; and whether progress is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.errors import UsageError
from quantaudit.settings import CaseSpec

if TYPE_CHECKING:
    from quantaudit.card.schema import Card
    from quantaudit.measure.profile import Profile
    from quantaudit.model.loading.load import LoadedModel
    from quantaudit.simulate.records import Simulation

Say = Callable[[str], None]


T = TypeVar("T")


def path_of(given: object, argument: str) -> Path:
    """A path. Raises UsageError for anything else."""
    if not isinstance(given, str | Path):
        raise UsageError(f"not a path, but {type(given).__name__}", where=argument, hint="give a path")
    return Path(given)


def _object(given: object, kind: type[T], argument: str) -> T:
    """What is of a kind already. Raises UsageError for anything else."""
    if not isinstance(given, kind):
        raise UsageError(
            f"not a {kind.__name__}, but {type(given).__name__}",
            where=argument,
            hint=f"give a path, or a {kind.__name__}",
        )
    return given


def profile_of(given: Profile | str | Path, argument: str = "profile") -> Profile:
    """A profile of a whole run, read where a path is given. Raises FormatError, and UsageError for other things."""
    from quantaudit.measure.profile import Profile, check_whole, load_profile

    if isinstance(given, str | Path):
        return load_profile(given)
    profile = _object(given, Profile, argument)
    check_whole(profile, argument)
    return profile


def shard_of(given: Profile | str | Path) -> Profile:
    """A profile of a run or of a part of it, read where a path is given. Raises FormatError and UsageError."""
    from quantaudit.measure.profile import Profile, load_profile

    return load_profile(given, whole=False) if isinstance(given, str | Path) else _object(given, Profile, "profiles")


def card_of(given: Card | str | Path, argument: str = "card") -> Card:
    """A card, read where a path is given. Raises FormatError, and UsageError for other things."""
    from quantaudit.card.schema import Card, load_card

    return load_card(given) if isinstance(given, str | Path) else _object(given, Card, argument)


def simulation_of(given: Simulation | str | Path | None) -> Simulation | None:
    """A simulation, read where a path is given. Raises FormatError, and UsageError for other things."""
    from quantaudit.simulate.records import Simulation, load_simulation

    if given is None:
        return None
    return load_simulation(Path(given)) if isinstance(given, str | Path) else _object(given, Simulation, "simulation")


def model_of(given: Any, tokenizer: Any, options: Mapping[str, Any]) -> tuple[str, LoadedModel | None]:
    """The spec of a model, and the model itself where it is in memory already. Raises UsageError.

    options: of the call; those that say how a model is loaded do not go with one that is loaded, nor a tokenizer with
    one that is not.
    """
    if isinstance(given, str | Path):
        if tokenizer is not None:
            raise UsageError("a checkpoint brings its tokenizer", where="tokenizer", hint="leave it out")
        return str(given), None
    for name in ("revision", "dtype", "device"):
        if options.get(name, "auto") not in (None, "auto"):
            raise UsageError(
                "says how a model is loaded, and this one is in memory", where=name, hint="leave it out, or give a spec"
            )
    from quantaudit.model.loading.in_memory import loaded_in_memory

    loaded = loaded_in_memory(given, tokenizer)
    return loaded.info.spec, loaded


def spec_of_profile(profile: Profile) -> str:
    """The spec of the model that a profile is of. Raises UsageError where that was in memory only."""
    model = profile.provenance.model
    if model.fingerprint.startswith("memory:"):
        raise UsageError(
            f"the profile is of a model in memory ({model.name})", where="model", hint="give model=… and tokenizer=…"
        )
    return model.spec


def case_of(recipe: str | Path, card: str | Path, options: dict[str, Any]) -> CaseSpec:
    """A case whose model, where none is given, is the one that its card names. Raises FormatError for the card."""
    from dataclasses import fields

    if unknown := options.keys() - {item.name for item in fields(CaseSpec)}:
        names = ", ".join(item.name for item in fields(CaseSpec))
        raise UsageError("unknown option", where=", ".join(sorted(unknown)), hint=f"one of {names}")
    path = path_of(card, "card")  # a file, since the result is added to it
    given = {name: value for name, value in options.items() if value is not None}
    model = given.pop("model", None)
    if model is None:
        model = _spec_of_card(card_of(path))
    model = path_of(model, "model") if not isinstance(model, str) else model
    if "profile" in given:
        given["profile"] = Path(given["profile"])
    if "corpus" in given:
        given["corpus"] = str(given["corpus"])
    return CaseSpec(recipe=path_of(recipe, "recipe"), card=path, model=str(model), **given)


@contextmanager
def claimed_for(case: CaseSpec, option: str, path: Path | None, *, folder: bool = False) -> Iterator[None]:
    """Within the context nobody else writes to `path`, which is none of a case's inputs. Raises OutputError."""
    from quantaudit.common.outputs.claims import Output, claimed

    inputs = {"recipe": case.recipe, "card": case.card, "model": Path(case.model)}
    inputs["profile"] = case.profile or case.card.parent / "profile.safetensors"
    outputs = [] if path is None else [Output(option=option, path=path, folder=folder)]
    with claimed(outputs, inputs):
        yield


def _spec_of_card(card: Card) -> str:
    if card.model.fingerprint.startswith("memory:"):
        raise UsageError(
            f"the card is of a model in memory ({card.model.name})",
            where="card",
            hint="audit its checkpoint, and give that card",
        )
    return card.model.spec


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options with paths of recipes as paths, and lists, or single names, as tuples. Raises UsageError."""
    options = dict(options)
    for name in {"schemes", "recipes"} & options.keys():
        value = options[name]
        if not isinstance(value, str | Path | Sequence):
            raise UsageError(f"not a list, but {type(value).__name__}", where=name, hint="give a list")
        options[name] = (value,) if isinstance(value, str | Path) else tuple(value)
    if "recipes" in options:
        options["recipes"] = tuple(path_of(path, "recipes") for path in options["recipes"])
    return options


@contextmanager
def shown(progress: bool | None) -> Iterator[tuple[Stages, Say]]:
    """What opens the stages of a job, and what takes a line. None: shown in a terminal and in a notebook."""
    if progress is False or (progress is None and not (sys.stderr.isatty() or "ipykernel" in sys.modules)):
        yield silent_stages, lambda text: None
        return
    from rich.markup import escape

    from quantaudit.common.display import progress as display
    from quantaudit.common.printing.console import InertConsole

    # Not as HTML: lines from another thread would end up in whichever cell runs.
    console = InertConsole(stderr=True, force_jupyter=False)
    with display(console) as stages:
        yield stages, lambda text: console.print(escape(text), highlight=False, soft_wrap=True)
