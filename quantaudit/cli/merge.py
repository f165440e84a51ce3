"""`quantaudit merge`: shards of one run, added up to the profile that a single run would have written."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit merge rank0.safetensors rank1.safetensors --out whole.safetensors"


def run(
    profiles: Annotated[list[Path], typer.Argument(metavar="PROFILE...", help="Profiles of one model and corpus.")],
    out: options.OutFile,
    force: options.Force = False,
) -> None:
    """Add up profiles of the same model and corpus that share no sample."""
    from quantaudit.cli import console
    from quantaudit.files import check_file
    from quantaudit.profile import load_profile, merge, save_profile

    check_file(out, force=force)
    save_profile(reduce(merge, [load_profile(path) for path in profiles]), out)
    console.say(f"wrote {out}")
