"""YAML that others wrote, as plain data within limits: size, depth, aliases and numbers; no key is given twice.

A few lines of aliases unfold to billions of nodes, and an anchor that holds its own alias to a tree without end. Both
are seen here while the document is composed, before anything is built from it.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml

from quantaudit.errors import QuantauditError

MOST_NODES = 100_000
"""Values and keys of a document, those that aliases repeat counted each time; 200 characters count as one more."""
DEEPEST = 64
"""Levels of nesting; a recipe has eight."""
LONGEST_NUMBER = 100
"""Characters of a number or a date."""
_CHARACTERS = 200

_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXTS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:binary")


class YamlRefusal(yaml.MarkedYAMLError):
    """Well-formed YAML that is not read: it passes a limit, repeats itself, or gives a key twice."""


class YamlDocument:
    """A document: `data` as plain Python values, `root` as nodes with their lines; both None where it is empty."""

    def __init__(self, text: str) -> None:
        """Raises yaml.YAMLError, of it YamlRefusal where a limit is passed."""
        loader = _Loader(text)
        try:
            self.root: yaml.Node | None = loader.get_single_node()
            self.data: Any = None if self.root is None else loader.construct_document(self.root)
        except RecursionError as error:
            raise YamlRefusal(problem="nested too deeply") from error
        finally:
            loader.dispose()


def read_yaml(
    text: str,
    path: str,
    error_type: type[QuantauditError],
    *,
    hint: str = "check indentation and quotes",
    tag_hint: str = "write plain text, numbers and lists",
    twice_hint: str = "keep one of them",
) -> YamlDocument:
    """A document from text. Raises an error of this type that names the line.

    hint: what to do where it is no YAML; tag_hint: where it has tags that plain data has not; twice_hint: where a key
    is given twice.
    """
    try:
        return YamlDocument(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, YamlRefusal):
            message, hint = problem, error.note or twice_hint
        elif isinstance(error, yaml.constructor.ConstructorError):
            message, hint = f"YAML that only Python can build: {problem}", tag_hint
        else:
            message = f"not YAML: {problem}"
        raise error_type(message, where=f"{path}:{mark.line + 1}" if mark else path, hint=hint) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which counts what it composes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = self._reached = 0
        self._open: set[str] = set()
        self._anchored: dict[str, tuple[int, int]] = {}
        """By anchor, the nodes and levels below it."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._repeat(event)
            return super().compose_node(parent, index)
        before, reached = self._nodes, self._reached
        self._depth += 1
        self._reached = self._depth
        self._spend(1 + len(getattr(event, "value", None) or "") // _CHARACTERS, 0, event)
        if event.anchor is not None:
            self._open.add(event.anchor)
        node: yaml.Node | None = super().compose_node(parent, index)
        if event.anchor is not None:
            self._open.discard(event.anchor)
            self._anchored[event.anchor] = self._nodes - before, self._reached - self._depth + 1
        self._depth -= 1
        self._reached = max(reached, self._reached)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                _refuse(
                    f"`{name[:80]}` is given twice, on lines {lines[name]} and {line}: the first is silently lost",
                    key.start_mark,
                )
            lines[name] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode):
            if node.tag not in _TEXTS and len(node.value) > LONGEST_NUMBER:
                _refuse(
                    f"a number of {len(node.value):,} characters, and at most {LONGEST_NUMBER} are read",
                    node.start_mark,
                    "put it in quotes if it is text",
                )
            if _SURROGATE.search(node.value):
                _refuse("half of a surrogate pair, which is no text", node.start_mark, "write the character itself")
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"`{str(node.value)[:40]}` is no {kind}", node.start_mark
            ) from error

    def _repeat(self, event: Any) -> None:
        if event.anchor in self._open:
            _refuse(f"`&{event.anchor}` holds itself: it has no end", event.start_mark, "remove the alias inside it")
        nodes, levels = self._anchored.get(event.anchor, (1, 1))
        self._spend(nodes, levels, event)

    def _spend(self, nodes: int, levels: int, event: Any) -> None:
        self._nodes += nodes
        self._reached = max(self._reached, self._depth + levels)
        if self._reached > DEEPEST:
            _refuse(f"nested deeper than {DEEPEST} levels", event.start_mark, "flatten it")
        if self._nodes > MOST_NODES:
            alias = " once its aliases are unfolded" if self._anchored else ""
            _refuse(f"too large: more than {MOST_NODES:,} values{alias}", event.start_mark, "write fewer values")


def _refuse(problem: str, mark: Any, note: str | None = None) -> NoReturn:
    raise YamlRefusal(problem=problem, problem_mark=mark, note=note)
