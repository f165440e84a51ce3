"""What a pattern that matches nothing may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from compressed_tensors.utils import is_match
from torch import nn

CONSIDERED = 2000
"""Full names are compared among so many at most: with thousands of experts, one layer is like the next."""


def suggestions(pattern: str, modules: Mapping[str, nn.Module], count: int = 3) -> tuple[str, ...]:
    """Patterns that do match something: the same one unanchored, else names and classes that are spelled alike."""
    core = pattern.removeprefix("re:")
    for repaired in (f"re:{core}", f"re:.*{core.lstrip('.*^')}"):
        if repaired != pattern and _matches(repaired, modules):
            return (repaired,)
    words = re.findall(r"\w+", core)
    if not words:
        return ()
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | nn.Embedding)}
    leaves = {name.rpartition(".")[2] for name in linears}
    classes = {type(module).__name__ for module in linears.values()}
    if "." in core and not pattern.startswith("re:"):
        full = difflib.get_close_matches(core, list(linears)[:CONSIDERED], count, cutoff=0.8)
        if full:
            return tuple(full)
    close = difflib.get_close_matches(words[-1], leaves | classes, count)
    return tuple(leaf if leaf in classes else f"re:.*{leaf}" for leaf in close)


def _matches(pattern: str, modules: Mapping[str, nn.Module]) -> bool:
    try:
        return any(
            is_match(name, module, pattern)
            for name, module in modules.items()
            if isinstance(module, nn.Linear | nn.Embedding)
        )
    except re.error:
        return False
