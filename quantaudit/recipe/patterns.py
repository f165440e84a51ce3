"""Module names as few regular expressions over projections and ranges of layers, which match these and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from quantaudit.common.choices import MOST_DIGITS

_NUMBER = "#"
"""Stands for a number in the path of a module."""
Box = tuple[frozenset[int], ...]
"""Numbers at each place of a path that has some; all combinations of them."""
ALL: frozenset[int] = frozenset()
"""Stands for all numbers that a model has at a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModulePattern:
    """A target of a recipe and the modules that it matches. body: a regular expression, None for an exact name."""

    names: tuple[str, ...]
    body: str | None

    @property
    def target(self) -> str:
        """As a recipe has it."""
        return self.names[0] if self.body is None else f"re:^{self.body}$"


def exact_patterns(
    names: Sequence[str], among: Collection[str], engine_name: Callable[[str], str] = str
) -> list[ModulePattern]:
    """Targets that match `names`, each by one target, and nothing else among all modules of a model.

    engine_name: what a serving engine calls a module. Engines translate exact names but no regular expressions, so that
    these match either name.
    """
    by_engine = {engine_name(name) for name in among}
    patterns = []
    for pattern in _patterns(names, among):
        renamed = [engine_name(name) for name in pattern.names]
        if pattern.body is not None and renamed != list(pattern.names):
            bodies = [pattern.body, *(other.body for other in _patterns(renamed, by_engine) if other.body is not None)]
            pattern = replace(pattern, body=f"(?:{'|'.join(bodies)})")
        patterns.append(pattern)
    return patterns


def _patterns(names: Sequence[str], among: Collection[str]) -> list[ModulePattern]:
    every = {kind: _places(by_numbers) for kind, by_numbers in _by_kind(among).items()}
    tails: dict[tuple[str, Box], dict[str, list[str]]] = {}
    exact: list[ModulePattern] = []
    for kind, by_numbers in _by_kind(names).items():
        if _NUMBER not in kind.split("."):
            exact += [ModulePattern(names=(name,), body=None) for name in by_numbers.values()]
            continue
        head, tail = _at_last_number(kind)
        for box in _boxes(by_numbers):
            inside = [name for numbers, name in by_numbers.items() if _holds(box, numbers)]
            wide = tuple(ALL if part == all_ else part for part, all_ in zip(box, every[kind], strict=True))
            tails.setdefault((head, wide), {})[tail] = inside
    for (head, box), by_tail in tails.items():
        inside = [name for some in by_tail.values() for name in some]
        # One module is named as it is: nothing in a name has to be escaped.
        body = None if len(inside) == 1 else _numbered(head, box) + _alternatives(list(by_tail))
        exact.append(ModulePattern(names=tuple(inside), body=body))
    return exact


def kind_and_numbers(name: str) -> tuple[str, tuple[int, ...]]:
    """A path with its numbers taken out, and these: modules of one kind differ in their numbers alone."""
    ((kind, by_numbers),) = _by_kind([name]).items()
    return kind, next(iter(by_numbers))


def number_pattern(values: Iterable[int]) -> str:
    """A regular expression for numbers as they are written in paths, without signs or leading zeros."""
    tens: dict[int, set[int]] = {}
    for value in sorted(values):
        tens.setdefault(value // 10, set()).add(value % 10)
    by_digits: dict[str, list[int]] = {}
    for ten, digits in tens.items():
        if ten:
            by_digits.setdefault(_digit_class(digits), []).append(ten)
    parts = [_digit_class(tens[0])] if 0 in tens else []
    parts += [f"{number_pattern(group)}{digits}" for digits, group in by_digits.items()]
    return _either(parts)


def _digit_class(digits: Collection[int]) -> str:
    """`7`, `[0-3]`, `[0129]`: a range is the whole class, as `[0-29]` would be read as up to 29."""
    first, last = min(digits), max(digits)
    if len(digits) > 2 and last - first + 1 == len(digits):
        return f"[{first}-{last}]"
    text = "".join(map(str, sorted(digits)))
    return text if len(digits) == 1 else f"[{text}]"


def _by_kind(names: Iterable[str]) -> dict[str, dict[tuple[int, ...], str]]:
    """Paths with their numbers taken out → numbers → path."""
    kinds: dict[str, dict[tuple[int, ...], str]] = {}
    for name in names:
        parts = name.split(".")
        numbers = tuple(int(part) for part in parts if _is_number(part))
        kinds.setdefault(".".join(_NUMBER if _is_number(part) else part for part in parts), {})[numbers] = name
    return kinds


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= MOST_DIGITS and part == str(int(part))


def _places(tuples: Collection[tuple[int, ...]]) -> list[frozenset[int]]:
    """All numbers at each place."""
    return [frozenset(place) for place in zip(*tuples, strict=True)]


def _at_last_number(kind: str) -> tuple[str, str]:
    """What comes up to the last number of a path, and what comes after it, with its point."""
    parts = kind.split(".")
    last = max(place for place, part in enumerate(parts) if part == _NUMBER)
    return ".".join(parts[: last + 1]), "".join(f".{part}" for part in parts[last + 1 :])


def _boxes(tuples: Collection[tuple[int, ...]]) -> list[Box]:
    """A set of tuples as sets of all combinations: layers that have the same experts are one, with these experts."""
    if not all(tuples):
        return [()]
    rests: dict[int, set[tuple[int, ...]]] = {}
    for first, *rest in tuples:
        rests.setdefault(first, set()).add(tuple(rest))
    alike: dict[frozenset[tuple[int, ...]], set[int]] = {}
    for first, same in rests.items():
        alike.setdefault(frozenset(same), set()).add(first)
    return [(frozenset(firsts), *box) for rest, firsts in alike.items() for box in _boxes(rest)]


def _holds(box: Box, numbers: Sequence[int]) -> bool:
    return all(number in part for number, part in zip(numbers, box, strict=True))


def _alternatives(tails: Sequence[str]) -> str:
    """Ends of paths as one expression, those of one parent together."""
    by_parent: dict[str, list[str]] = {}
    for tail in tails:
        parent, point, leaf = tail.rpartition(".")
        by_parent.setdefault(re.escape(parent + point), []).append(re.escape(leaf))
    return _either([parent + _either(leaves) for parent, leaves in by_parent.items()])


def _either(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _numbered(head: str, box: Box) -> str:
    """A path as an expression, each of its numbers one of those of a box."""
    numbers = iter(box)
    texts = []
    for part in head.split("."):
        if part != _NUMBER:
            texts.append(re.escape(part))
        else:
            values = next(numbers)
            texts.append("[0-9]+" if values == ALL else number_pattern(values))
    return r"\.".join(texts)
