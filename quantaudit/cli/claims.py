"""What each verb writes and reads, so that its outputs are checked and locked in one place: before the verb begins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantaudit.cli.report import default_folder
from quantaudit.common.ranks.processes import place

if TYPE_CHECKING:
    from quantaudit.common.outputs.claims import Output

OUTPUTS = {"out": "--out", "save": "--save", "export_reference": "--export-reference", "readme": "README"}
"""Parameters that name what is written."""
INPUTS = {
    "profile": "--profile",
    "profiles": "PROFILE",
    "card": "--card",
    "cards": "CARD",
    "folder": "DIR",
    "recipe": "RECIPE",
    "recipes": "--recipe",
    "model": "MODEL",
    "corpus": "--corpus",
    "corpus_tokenizer": "--corpus-tokenizer",
    "policy": "--policy",
    "hardware": "--hardware",
    "template_dir": "--template-dir",
}
"""Parameters that name what is read, where something of the name exists."""
REPORT = ("card.json", "profile.safetensors", "scales.safetensors")
"""What a report is, in addition to the pages of its card."""


def claiming(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that runs only where its outputs are none of its inputs, and nobody else writes them."""
    check = getattr(verb, "check", lambda _given: None)
    name = verb.__module__.rpartition(".")[2]
    if not OUTPUTS.keys() & inspect.signature(verb).parameters.keys():
        return verb

    @wraps(verb)
    def run(**given: Any) -> None:
        from quantaudit.common.outputs.claims import claimed

        check(given)  # a wrong option is wrong at once, whoever else writes there
        if place().rank:  # the first rank holds the locks, and writes
            verb(**given)
            return
        with claimed(list(outputs_of(name, given)), inputs_of(given)):
            verb(**given)

    signature = inspect.signature(verb, eval_str=True)  # names of the verb's module mean nothing in this one
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: item.annotation for name, item in signature.parameters.items()} | {"return": None}
    return run


def outputs_of(verb: str, given: Mapping[str, Any]) -> Iterator[Output]:
    """Everything that a call writes; cards that it adds to are locked when it does."""
    from quantaudit.card.render import PAGES
    from quantaudit.common.outputs.claims import Output

    if verb == "report":
        folder = given["out"] or default_folder(given["model"])
        yield Output(option="--out", path=folder, folder=True, writes=(*REPORT, *PAGES))
    elif verb == "render":
        # A card that is rendered where it lies stays as it is.
        yield Output(option="--out", path=given["out"], folder=True, writes=PAGES)
    elif verb == "atlas":
        from quantaudit.atlas.site import PAGES as SITE

        yield Output(option="--out", path=given["out"], folder=True, writes=SITE)
    elif verb == "compare":
        from quantaudit.compare.pages import PAGES as COMPARED

        if given["out"] is not None:
            yield Output(option="--out", path=given["out"], folder=True, writes=COMPARED)
    elif verb == "insert":
        from quantaudit.card.readme.insert import places

        yield from () if given["check"] or given["readme"] is None else places(given["readme"], given["card"])
    else:
        for name, option in OUTPUTS.items():
            if given.get(name) is not None:
                yield Output(option=option, path=given[name], folder=name == "save")


def inputs_of(given: Mapping[str, Any]) -> dict[str, Path]:
    """Everything on this machine that a call reads, by option; a card's profile lies in its folder by default."""
    from quantaudit.corpus.spec import parse

    inputs: dict[str, Path] = {}
    for name, option in INPUTS.items():
        value = given.get(name)
        for number, one in enumerate(value if isinstance(value, list | tuple) else [value]):
            if one is not None:
                path = parse(one).path if name == "corpus" else Path(one).expanduser()
                if name == "cards" and given.get("logits"):
                    option = "MODEL"
                elif name == "cards" and path.is_dir():
                    path = path / "card.json"
                inputs[option if number == 0 else f"{option} {number + 1}"] = path
    if "card" in given and given.get("card") and given.get("profile", ...) is None:
        inputs["the card's profile"] = Path(given["card"]).parent / "profile.safetensors"
    return inputs
