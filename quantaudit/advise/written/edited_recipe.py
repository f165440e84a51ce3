"""The user's own recipe with what advice changes: comments, order, names and all that stays are as they wrote them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from quantaudit.advise.written.write_recipe import ConfigGroup, SmoothGroup, Target, comment
from quantaudit.recipe.parse import ParsedModifier, ParsedRecipe

WIDTH = 1 << 20
"""Of a line: none is folded."""


def edited(
    original: str,
    parsed: ParsedRecipe,
    *,
    header: Sequence[str],
    changed: Sequence[ConfigGroup],
    kept: Mapping[str, Sequence[Target]],
    left: Sequence[Target],
    smooth: Sequence[SmoothGroup] = (),
) -> str | None:
    """The recipe's text with groups of targets in addition, which as patterns go before a class such as `Linear`.

    original, parsed: the recipe as it was written, and read. header: comment lines that go before it. changed: groups
    that are quantized otherwise; left: that are to be ignored; kept: by name, entries whose patterns would match the
    changed ones too, with the targets that stay theirs. smooth: what is to come before quantization.
    None where there is no text to keep: not one modifier that quantizes by `config_groups`, or YAML of another version.
    """
    writer = YAML()
    writer.preserve_quotes, writer.width = True, WIDTH
    writer.indent(mapping=2, sequence=4, offset=2)
    match parsed.modifiers:
        case (ParsedModifier(name="QuantizationModifier", keys=(stage, name, own)),):
            pass
        case _:
            return None
    try:
        document = writer.load(original)
        modifier = document[stage][name][own]
    except (YAMLError, KeyError):  # it reads YAML 1.2, llm-compressor 1.1
        return None
    groups = modifier.get("config_groups")
    if not isinstance(groups, CommentedMap):
        return None
    for entry, targets in kept.items():
        if targets:
            groups[entry]["targets"] = _targets(targets)
        else:
            del groups[entry]
    for group in changed:
        groups[_free("advised", groups)] = _group(group)
    if left:
        modifier["ignore"] = _targets(left, before=modifier.get("ignore") or ())
    place = list(document[stage]).index(name)
    for step in reversed(smooth):
        document[stage].insert(place, _free(step.name, document[stage]), _smoothing(step))
    text = io.StringIO()
    writer.dump(document, text)
    return "".join(f"# {comment(line)}\n" for line in header) + "#\n" + text.getvalue()


def _free(name: str, taken: Iterable[str]) -> str:
    """A name that is not taken."""
    names = set(taken)
    return next(free for free in (name, *(f"{name}_{i}" for i in range(2, len(names) + 3))) if free not in names)


def _group(group: ConfigGroup) -> CommentedMap:
    parts = CommentedMap()
    for part, values in group.arguments.items():
        parts[part] = CommentedMap(values)
        parts[part].fa.set_flow_style()
    parts["targets"] = _targets(group.targets)
    return parts


def _targets(targets: Sequence[Target], before: Iterable[str] = ()) -> CommentedSeq:
    """One name a line, each with its reason behind it."""
    names = CommentedSeq(before)
    for target in targets:
        for index, name in enumerate(target.names):
            names.append(SingleQuotedScalarString(name))
            if not index and target.reason:
                names.yaml_add_eol_comment(comment(target.reason), len(names) - 1)
    return names


def _smoothing(step: SmoothGroup) -> CommentedMap:
    mappings = CommentedSeq()
    for row in step.mappings:
        layers = CommentedSeq([SingleQuotedScalarString(name) for name in row.balance_layers])
        layers.fa.set_flow_style()
        mapping = CommentedSeq([layers, SingleQuotedScalarString(row.norm)])
        mapping.fa.set_flow_style()
        mappings.append(mapping)
        if row.reason:
            mappings.yaml_add_eol_comment(comment(row.reason), len(mappings) - 1)
    arguments = CommentedMap(smoothing_strength=step.strength, mappings=mappings)
    return CommentedMap(SmoothQuantModifier=arguments)
