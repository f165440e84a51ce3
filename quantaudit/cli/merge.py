"""`quantaudit merge`: shards of one run, added up to the profile that a single run would have written."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit merge shard1.safetensors shard2.safetensors --out whole.safetensors"


def run(
    profiles: Annotated[list[Path], typer.Argument(metavar="PROFILE...", help="Shards of one model and corpus.")],
    out: options.OutFile,
    force: options.Force = False,
) -> None:
    """Add up shards of one run (`quantaudit measure --shard I/N`) to the profile of the whole."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_file
    from quantaudit.measure.profile import load_profile, merge, save_profile

    check_file(out, force=force)
    merged = reduce(merge, [load_profile(path, whole=False) for path in profiles])
    save_profile(merged, out)
    console.say(f"wrote {out}")
    if (held := merged.provenance.shards) is not None:
        missing = ", ".join(map(str, held.missing))
        console.say(f"incomplete: {held.named()}, missing {missing}; until they are merged, no command reads it")
