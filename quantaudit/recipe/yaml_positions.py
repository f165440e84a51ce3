"""Where everything stands in a YAML file: line numbers by path of keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

Keys = tuple[str | int, ...]
"""Path of mapping keys and list indices from the top of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One node: its line, counted from 1, and its text where it is a scalar."""

    line: int
    scalar: str | None


class YamlPositions:
    """Every place of a document. An alias is placed where its anchor stands, what a merge key brings in nowhere."""

    def __init__(self, document: str | yaml.Node | None) -> None:
        self.places: dict[Keys, Place] = {}
        self._walked: set[int] = set()
        root = yaml.compose(document, Loader=yaml.SafeLoader) if isinstance(document, str) else document
        if root is not None:
            self._walk(root, (), root.start_mark.line + 1)

    def line(self, keys: Keys) -> int:
        """The line of a node, or of the nearest node above it that has one."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places[keys].line if keys in self.places else 1

    def find(self, above: Keys, scalar: str) -> Keys:
        """Path of the first scalar below `above` with this text; `above` where there is none."""
        for keys, place in self.places.items():
            if keys[: len(above)] == above and place.scalar == scalar:
                return keys
        return above

    def _walk(self, node: yaml.Node, keys: Keys, line: int) -> None:
        self.places[keys] = Place(line=line, scalar=node.value if isinstance(node, yaml.ScalarNode) else None)
        # A node that is aliased is walked once: aliases may nest to exponential size, or contain themselves.
        if id(node) in self._walked:
            return
        self._walked.add(id(node))
        for key, value, at in self._children(node):
            self._walk(value, (*keys, key), at)

    def _children(self, node: yaml.Node) -> Iterator[tuple[str | int, yaml.Node, int]]:
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                yield index, child, child.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                yield str(key.value), value, key.start_mark.line + 1
