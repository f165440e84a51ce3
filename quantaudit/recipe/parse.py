"""Reads a recipe file: llm-compressor says what it means; the YAML is read by itself for lines and for what is lost.

llm-compressor reads `*_stage` → `*_modifiers` → `Name: {arguments}` and passes over everything else without a word, so
that a wrongly nested recipe is an empty one. Here such a recipe is an error that names the line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from quantaudit.common.logs import stdout_to_stderr
from quantaudit.common.reading.regular_files import RECIPE_BYTES, read_text
from quantaudit.common.reading.yaml_document import read_yaml
from quantaudit.errors import RecipeError
from quantaudit.provenance import explain
from quantaudit.recipe.yaml_positions import Keys, YamlPositions

_TWICE = "keep one; a second modifier of the same kind goes into a stage or a group of its own"
NESTING = "nest it as `quant_stage:` → `quant_modifiers:` → `QuantizationModifier:` → its arguments"


TRANSFORMS = frozenset({"AWQModifier", "SmoothQuantModifier", "LogarithmicEqualizationModifier", "SpinQuantModifier"})
"""Modifiers that change weights before another one quantizes them, and that quantize nothing themselves."""
QUANTIZES = frozenset({"scheme", "config_groups", "targets", "ignore", "kv_cache_scheme", "num_bits", "weights"})
"""Arguments of modifiers that quantize."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedModifier:
    """One modifier. keys: (stage, group, name) in the file; modifier: llm-compressor's own object."""

    name: str
    keys: Keys
    modifier: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRecipe:
    """A recipe as llm-compressor reads it. passed_over: keys that it reads nothing from."""

    path: str
    modifiers: tuple[ParsedModifier, ...]
    passed_over: tuple[Keys, ...]
    positions: YamlPositions

    def where(self, keys: Keys = ()) -> str:
        """`path:line` of a node."""
        return f"{self.path}:{self.positions.line(keys)}"


def read_recipe(path: Path) -> ParsedRecipe:
    """Read a recipe file. Raises RecipeError, with the line, on all that llm-compressor would fail at or lose."""
    return parse_recipe(_read(path), str(path))


def check_recipe(path: Path) -> None:
    """Raises RecipeError where a file is missing, or where `read_recipe` refuses it before it asks llm-compressor."""
    _outline(_read(path), str(path))


def _read(path: Path) -> str:
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise RecipeError("not a recipe file", where=str(path), hint="give a .yaml, .yml or .json file")
    try:
        return read_text(path, RECIPE_BYTES)
    except FileNotFoundError as error:
        raise RecipeError("no such file", where=str(path), hint="shipped recipes are in recipes/") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path), hint="a recipe is UTF-8 text") from error


def parse_recipe(text: str, path: str) -> ParsedRecipe:
    """Read a recipe from text; `path` names it in messages. Raises RecipeError."""
    data, positions, modifiers, passed_over = _outline(text, path)
    return ParsedRecipe(
        path=path,
        modifiers=_create(data, modifiers, positions, path),
        passed_over=tuple(passed_over),
        positions=positions,
    )


def _outline(text: str, path: str) -> tuple[Any, YamlPositions, list[Keys], list[Keys]]:
    """What the YAML says by itself: its data and lines, where its modifiers are, and the keys that are passed over."""
    data, positions = _load(text, path)
    if data is None:
        raise RecipeError("recipe is empty", where=path, hint=NESTING)
    modifiers, passed_over = _structure(data, positions, path)
    if not modifiers:
        raise RecipeError("recipe quantizes nothing: it holds no modifier", where=path, hint=NESTING)
    return data, positions, modifiers, passed_over


def _load(text: str, path: str) -> tuple[Any, YamlPositions]:
    hint = "check indentation and quotes; a pattern with special characters is best quoted"
    document = read_yaml(text, path, RecipeError, hint=hint, tag_hint=_tag_hint(text), twice_hint=_TWICE)
    return document.data, YamlPositions(document.root)


def _tag_hint(text: str) -> str:
    if re.search(r"!\w*Modifier\b", text):
        return f"modifiers as tags in a list are the form of an older release: {NESTING}"
    return "write plain text, numbers and lists; `Recipe.yaml()` can emit tags that nothing reads back"


def _structure(data: Any, positions: YamlPositions, path: str) -> tuple[list[Keys], list[Keys]]:
    """(stage, group, name) of every modifier that llm-compressor finds, and the keys that it passes over."""
    modifiers: list[Keys] = []
    passed_over: list[Keys] = []
    for stage, groups in _mapping(data, (), "the recipe", positions, path):
        if stage == "args":
            continue
        if not stage.endswith("_stage"):
            _lost(groups, (stage,), "is not inside a stage (a key that ends in `_stage`)", positions, path)
            passed_over.append((stage,))
            continue
        for group, members in _mapping(groups, (stage,), f"stage `{stage}`", positions, path):
            if not group.endswith("_modifiers"):
                _lost(
                    members, (stage, group), "is not inside a group (a key that ends in `_modifiers`)", positions, path
                )
                passed_over.append((stage, group))
                continue
            for name, arguments in _mapping(members, (stage, group), f"group `{group}`", positions, path):
                if not isinstance(arguments, dict):
                    raise RecipeError(
                        f"`{name}` has {_kind(arguments)} where its arguments belong",
                        where=f"{path}:{positions.line((stage, group, name))}",
                        hint=f"indent its arguments below it, or write `{name}: {{}}`",
                    )
                modifiers.append((stage, group, name))
    return modifiers, passed_over


def _mapping(value: Any, keys: Keys, what: str, positions: YamlPositions, path: str) -> Iterator[tuple[str, Any]]:
    where = f"{path}:{positions.line(keys)}"
    if not isinstance(value, dict):
        raise RecipeError(
            f"{what} is {_kind(value)}, not a mapping: nothing is read from it", where=where, hint=NESTING
        )
    for key, child in value.items():
        if not isinstance(key, str):
            raise RecipeError(f"key {key!r} is not text", where=where, hint=NESTING)
        yield key, child


def _kind(value: Any) -> str:
    return "nothing" if value is None else "a list" if isinstance(value, list) else "a single value"


def _lost(value: Any, keys: Keys, why: str, positions: YamlPositions, path: str) -> None:
    """Raises RecipeError where a modifier stands at, or below, a key that llm-compressor passes over."""
    for place in _modifier_keys(value, keys):
        raise RecipeError(
            f"recipe quantizes nothing: `{place[-1]}` {why}", where=f"{path}:{positions.line(place)}", hint=NESTING
        )


def _modifier_keys(value: Any, keys: Keys) -> Iterator[Keys]:
    if str(keys[-1]).endswith("Modifier"):
        yield keys
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _modifier_keys(child, (*keys, str(key)))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _modifier_keys(child, (*keys, index))


def _create(data: Any, places: Sequence[Keys], positions: YamlPositions, path: str) -> tuple[ParsedModifier, ...]:
    with stdout_to_stderr():
        from llmcompressor.recipe import Recipe

        try:
            modifiers = Recipe.from_dict(data).modifiers
        except Exception as error:  # what its modifiers raise on bad arguments is theirs to choose
            raise _culprit(data, places, positions, path, error) from error
    parsed = tuple(
        ParsedModifier(name=type(modifier).__name__, keys=keys, modifier=modifier)
        for keys, modifier in zip(places, modifiers, strict=True)
    )
    for one in parsed:
        _check(one, positions, path)
    return parsed


def _check(parsed: ParsedModifier, positions: YamlPositions, path: str) -> None:
    """Raises RecipeError on what llm-compressor would find only once it runs the modifier."""
    try:
        getattr(parsed.modifier, "resolved_config", None)
    except (
        Exception
    ) as error:  # arguments that contradict each other; which error that is, is llm-compressor's to choose
        raise _explained(error, parsed.keys, positions, path) from error
    from quantaudit.recipe.modifiers.arguments import (
        refusals,  # torch comes with it, which checking a file's form can do without
    )

    refusal = next(refusals(parsed.modifier), None)
    if refusal is not None:
        place = positions.find(parsed.keys, refusal.value) if refusal.value else (*parsed.keys, refusal.argument)
        raise RecipeError(
            f"{parsed.name}: {refusal.reason}", where=f"{path}:{positions.line(place)}", hint=refusal.hint
        )


def _culprit(data: Any, places: Sequence[Keys], positions: YamlPositions, path: str, whole: Exception) -> RecipeError:
    """The error of the first modifier that cannot be made; of the recipe as a whole, where each can."""
    from llmcompressor.modifiers import ModifierFactory

    names = {*ModifierFactory._main_registry, *ModifierFactory._registered_registry} - {"Modifier"}
    for stage, group, name in cast(Sequence[tuple[str, str, str]], places):
        keys: Keys = (stage, group, name)
        if name not in names:
            near = difflib.get_close_matches(name, names, 3) or sorted(names)
            return RecipeError(
                f"llm-compressor has no modifier `{name}`",
                where=f"{path}:{positions.line(keys)}",
                hint=f"did you mean {' or '.join(near)}?" if len(near) <= 3 else f"one of {', '.join(near)}",
            )
        try:
            ModifierFactory.create(
                name, allow_registered=True, allow_experimental=True, **deepcopy(data[stage][group][name])
            )
        except Exception as error:
            at = () if isinstance(error, ValidationError) else _unusable(data[stage][group][name])
            return _explained(error, keys, positions, path, at)
    return _explained(whole, (), positions, path)


def _unusable(arguments: Any, keys: Keys = ()) -> Keys:
    """Where the first argument lies that no scheme can be made with, such as text for a number; () for none."""
    from compressed_tensors.quantization import QuantizationArgs

    for key, value in arguments.items() if isinstance(arguments, dict) else ():
        if isinstance(value, dict) and (found := _unusable(value, (*keys, key))):
            return found
        if keys and key in QuantizationArgs.model_fields:
            try:
                QuantizationArgs(**{key: value})
            except ValidationError:
                continue  # it may be right together with others
            except Exception:  # the validators' own mistakes over a value of another kind
                return (*keys, key)
    return ()


def _explained(error: Exception, keys: Keys, positions: YamlPositions, path: str, at: Keys = ()) -> RecipeError:
    """at: below `keys`, the argument that the error is about, where it does not say so itself."""
    name = keys[-1] if keys else "recipe"
    hint = "llm-compressor refuses this recipe; correct the argument"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = (*keys, *first["loc"])
        if first["type"] == "extra_forbidden":
            hint = "remove it, or check its spelling and its indentation"
            if name in TRANSFORMS and first["loc"][0] in QUANTIZES:
                hint = (
                    f"{name} only rescales: give `scheme`, `targets` and `ignore` to a QuantizationModifier, or "
                    "GPTQModifier, below it; to remove them alone leaves nothing quantized"
                )
        return RecipeError(f"{name}: {explain(error)}", where=f"{path}:{positions.line(place)}", hint=hint)
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    argument = f"{'.'.join(map(str, at))}: " if at else ""
    return RecipeError(f"{name}: {argument}{reason}", where=f"{path}:{positions.line((*keys, *at))}", hint=hint)
