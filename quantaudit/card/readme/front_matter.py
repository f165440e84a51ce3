"""The YAML at the head of a model card, extended by insertions alone: comments, order and quotes stay.

The Hub's library finds the block (its expression is that of the Hub's server), and says what the fields mean. Its own
way to change them, `metadata_update`, writes all of the YAML again without its comments; so here text is inserted, and
what comes of it is read again: it stays only where it says exactly what it said before, and what was to be added.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from quantaudit.card.readme.document import front_matter, lines_of
from quantaudit.common.reading.yaml_document import YamlDocument, read_yaml
from quantaudit.errors import FormatError

TAG = "quantaudit"
_BOM = "\ufeff"
_LINE_END = re.compile(r"\r\n|\r|\n")
_WITHOUT = "write it by hand, or leave --front-matter out"
Fields = Mapping[Any, Any]


class Front(NamedTuple):
    """What is known for a front matter. base: the repository on the Hub whose weights the card is of, or None.

    quantized: whether the configuration next to the README says that its weights are quantized.
    """

    base: str | None
    quantized: bool


class _Block(NamedTuple):
    """A text around its YAML. newline: how its lines end."""

    before: str
    yaml: str
    after: str
    newline: str

    def text(self) -> str:
        return self.before + self.yaml + self.after


class _Attempt(NamedTuple):
    """YAML after an insertion, and the fields that it must have then."""

    yaml: str
    fields: Fields


def with_front_matter(text: str, front: Front, where: str) -> str:
    """A README whose front matter has the tag `quantaudit`, and `base_model_relation` where that is known.

    That is `quantized` where the weights are, and `base_model` names the model that the card is of; one that is there
    stays. Nothing but insertions: what has no front matter gets one. Raises FormatError, with the line, for front
    matter that cannot be read, or to which nothing can be added without changing the rest.
    """
    block = _block(text, where)
    block = block._replace(yaml=_tagged(block, where))
    fields = _fields(block, where)
    if front.quantized and front.base in _names(fields.get("base_model")) and "base_model_relation" not in fields:
        new = {**fields, "base_model_relation": "quantized"}
        block = block._replace(yaml=_first(block, _added(block, ["base_model_relation: quantized"], new), where))
    return block.text()


def _block(text: str, where: str) -> _Block:
    """The YAML of a README, by the Hub's own expression; an empty one at its head where there is none."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if text.startswith(_BOM):
        raise FormatError(
            "begins with a byte order mark, behind which the Hub's library finds no front matter",
            where=f"{where}:1",
            hint="save it without, or leave --front-matter out",
        )
    match = REGEX_YAML_BLOCK.search(text)
    end = re.search("\r?\n", text)
    newline = end[0] if end else "\n"
    if match is None:
        if front_matter(lines_of(text)):
            raise FormatError(
                "the Hub's library finds no front matter between these lines of dashes",
                where=f"{where}:1",
                hint=_WITHOUT,
            )
        return _Block(f"---{newline}", "", f"{newline}---{newline}{text}", newline)
    return _Block(text[: match.start(2)], match[2], text[match.end(2) :], newline)


def _tagged(block: _Block, where: str) -> str:
    """The YAML with the tag."""
    fields = _fields(block, where)
    tags = fields.get("tags")
    if isinstance(tags, list) and TAG in tags:
        return block.yaml
    if "tags" not in fields:
        return _first(block, _added(block, ["tags:", f"- {TAG}"], {**fields, "tags": [TAG]}), where)
    node = _node(block, "tags")
    if tags is not None and not isinstance(tags, list):
        line = _line_of(block, 0 if node is None else _index(node))
        raise FormatError("`tags` is no list, so no tag can be added to it", where=f"{where}:{line}", hint=_WITHOUT)
    return _first(block, iter(()) if node is None else _extended(block, node, fields), where)


def _first(block: _Block, attempts: Iterator[_Attempt], where: str) -> str:
    """The first attempt after which the YAML says what it should. Raises FormatError where there is none."""
    for attempt in attempts:
        changed = block._replace(yaml=attempt.yaml)
        try:
            if _same(_fields(_block(changed.text(), where), where), attempt.fields):
                return attempt.yaml
        except FormatError:
            continue
    raise FormatError(
        "nothing can be added to the front matter without changing the rest of it",
        where=f"{where}:{_line_of(block, 0)}",
        hint=_WITHOUT,
    )


def _added(block: _Block, lines: list[str], fields: Fields) -> Iterator[_Attempt]:
    """A new field: after all others, or before them where the last is a text, which would get a line end more."""
    root = YamlDocument(block.yaml).root
    indent = " " * (root.start_mark.column if root else 0)
    new = [indent + line for line in lines]
    gap = [] if not block.yaml or block.yaml.endswith(("\n", "\r")) else [""]
    yield _Attempt(block.yaml + block.newline.join([*gap, *new]), fields)
    yield _Attempt(block.newline.join([*new, ""]) + block.yaml, fields)


def _extended(block: _Block, node: yaml.Node, fields: Fields) -> Iterator[_Attempt]:
    """One more tag: after those that are there, or before them. node: those that are there."""
    tags = fields["tags"] or []
    last, first = {**fields, "tags": [*tags, TAG]}, {**fields, "tags": [TAG, *tags]}
    if not isinstance(node, yaml.SequenceNode):  # the key alone
        yield _inserted(block, _end_of_line(block, _index(node)), f"{block.newline}- {TAG}", last)
    elif node.flow_style:
        text, index = (f", {TAG}", node.value[-1].end_mark.index) if node.value else (TAG, _index(node) + 1)
        yield _inserted(block, index, text, last)
    else:
        indent = " " * node.start_mark.column
        end = _end_of_line(block, node.value[-1].end_mark.index)
        yield _inserted(block, end, f"{block.newline}{indent}- {TAG}", last)
        yield _inserted(block, _index(node), f"- {TAG}{block.newline}{indent}", first)


def _inserted(block: _Block, index: int, text: str, fields: Fields) -> _Attempt:
    return _Attempt(block.yaml[:index] + text + block.yaml[index:], fields)


def _fields(block: _Block, where: str) -> dict[Any, Any]:
    """What the YAML says. Raises FormatError where it is none, or no mapping."""
    # Lines before it, so that errors name those of the file.
    data = read_yaml("\n" * (_line_of(block, 0) - 1) + block.yaml, where, FormatError, hint=_WITHOUT).data
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise FormatError("front matter that has no fields", where=f"{where}:{_line_of(block, 0)}", hint=_WITHOUT)
    return data


def _same(one: Fields, other: Fields) -> bool:
    """Whether two mappings have the same fields with values of the same types, in whichever order of the fields."""
    return {repr(key): repr(value) for key, value in one.items()} == {
        repr(key): repr(value) for key, value in other.items()
    }


def _node(block: _Block, name: str) -> yaml.Node | None:
    """The value of a field; None where it has none of its own, as where it is merged from another mapping."""
    root = YamlDocument(block.yaml).root
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return next((value for key, value in pairs if key.value == name), None)


def _names(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    return [name for name in names if isinstance(name, str)]


def _index(node: yaml.Node) -> int:
    return int(node.start_mark.index)


def _line_of(block: _Block, index: int) -> int:
    """The line of a place in the YAML, from 1 on, in the file."""
    return 1 + len(_LINE_END.findall(block.before + block.yaml[:index]))


def _end_of_line(block: _Block, index: int) -> int:
    match = _LINE_END.search(block.yaml, index)
    return match.start() if match else len(block.yaml)
