"""`quantaudit.merge`: shards of one run → the profile that a single run would have written."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.api.arguments import shard_of

if TYPE_CHECKING:
    from quantaudit.measure.profile import Profile


def merge(*profiles: Profile | str | Path) -> Profile:
    """Add up profiles of one run: shards, ranks. Raises FormatError where they are of different runs.

    All shards of a run give the very profile that one run over its whole corpus writes (with experts, under `routed` or
    `all`: a shard cannot know which see too few tokens); some of them, one that says which.

    >>> halves = [quantaudit.measure("demo", samples=6, max_length=64, shard=f"{part}/2") for part in (1, 2)]
    >>> whole = quantaudit.merge(*halves)
    >>> whole.provenance.shards is None
    True
    """
    from quantaudit.errors import UsageError
    from quantaudit.measure.profile import merge as add

    if not profiles:
        raise UsageError("nothing to merge", where="profiles", hint="give the shards of one run")
    return reduce(add, [shard_of(profile) for profile in profiles])
