"""Whether an artifact is of the model that a card is about: by its configuration, not by what lacks in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from quantaudit.card.schema import Card, Finding
from quantaudit.conform.artifacts.records import Artifact
from quantaudit.conform.card_inputs import fused_groups
from quantaudit.conform.names import skeleton
from quantaudit.conform.rules.catalogue import finding
from quantaudit.errors import ModelError


def check_model(artifact: Artifact, card: Card) -> list[Finding]:
    """QA610 for Linears of decoder layers that lack in an artifact whose tensors were not held against a contract.

    Raises ModelError where its config.json describes another model than the card's, or none of its modules is one.
    """
    shapes = {info.name: tuple(info.weight_shape) for info in card.model.modules if info.weight_shape}
    linears = [name for members in fused_groups(card).values() for name in members]
    if artifact.config is not None:
        _check_config(artifact, card, shapes, linears)
    if artifact.checkpoint is not None:
        stems = {name.rpartition(".")[0] for name in artifact.checkpoint.tensors}
        held = {name for name, saved in artifact.checkpoint.saved.items() if saved in stems}
    else:
        held = set(artifact.weights)
    absent = [name for name in linears if name not in held and "layers." in name]
    if linears and held.isdisjoint(linears) and absent and (held or artifact.config is None):
        raise _other_model(artifact, card, f"none of its modules is one of the card's, such as `{linears[0]}`")
    for name, shape in artifact.weights.items():
        if shape and name in shapes and shapes[name] != shape:
            raise _other_model(
                artifact, card, f"`{name}` has the shape {list(shape)}, on the card {list(shapes[name])}"
            )
    if artifact.checkpoint is not None or not artifact.weights:
        return []
    return [finding("QA610", name, f"`{name}.weight` is missing") for name in absent]


def _check_config(artifact: Artifact, card: Card, shapes: Mapping[str, tuple[int, ...]], linears: list[str]) -> None:
    config = artifact.config
    assert config is not None
    model = skeleton(config)
    if model is None:
        _check_numbers(artifact, card, config)
        return
    modules = dict(model.named_modules())
    absent = [name for name in linears if name not in modules and _structural(modules, name)]
    if linears and len(absent) == len(linears):
        raise _other_model(artifact, card, f"none of its modules is one of the card's, such as `{linears[0]}`")
    if absent:
        raise _other_model(artifact, card, f"{len(absent)} of the card's Linears are not in it, such as `{absent[0]}`")
    for name in sorted(linears):
        weight = getattr(modules.get(name), "weight", None)
        shape = tuple(weight.shape) if weight is not None else shapes.get(name, ())
        if name in shapes and shape != shapes[name]:
            raise _other_model(
                artifact, card, f"`{name}` has the shape {list(shape)}, on the card {list(shapes[name])}"
            )
    extra = _more_layers(modules, {info.name for info in card.model.modules})
    if extra:
        raise _other_model(artifact, card, f"it has the layer `{extra}`, which the card has not")


def _structural(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether a module lacks because of the sizes of the model, and not because its experts are kept in one tensor."""
    parent = name
    while parent not in modules:
        parent = parent.rpartition(".")[0]
    return not any(True for _ in modules[parent].parameters(recurse=False))


def _more_layers(modules: Mapping[str, nn.Module], listed: set[str]) -> str | None:
    """A numbered child of a list on the card that the card does not have."""
    for name, module in modules.items():
        if isinstance(module, nn.ModuleList) and name in listed and len(module):
            last = f"{name}.{len(module) - 1}"
            if last not in listed and f"{name}.0" in listed:
                return last
    return None


def _check_numbers(artifact: Artifact, card: Card, config: Mapping[str, Any]) -> None:
    """For models whose code comes with the checkpoint: the sizes that nearly all configurations name."""
    text = config.get("text_config")
    parts = [config, text] if isinstance(text, Mapping) else [config]
    for key, expected in (("num_hidden_layers", card.model.layers), ("hidden_size", card.model.hidden_size)):
        stated = next((part[key] for part in reversed(parts) if isinstance(part.get(key), int)), None)
        if stated is not None and stated != expected:
            raise _other_model(artifact, card, f"its config.json says {key} {stated}, the card {expected}")


def _other_model(artifact: Artifact, card: Card, what: str) -> ModelError:
    return ModelError(
        f"not the model of the card ({card.model.name}): {what}",
        where=artifact.path,
        hint="give the card of the model that this artifact was made from",
    )
