"""`quantaudit scales`: quantization parameters of every quantizable tensor, from a profile alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit scales smollm2.safetensors --observer mse --out scales.safetensors"


def run(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="Profile written by `quantaudit measure`.")],
    out: options.OutFile,
    scheme: Annotated[
        str,
        typer.Option(
            metavar="SCHEME",
            help="int8_static_per_tensor, int8_asymmetric_static_per_tensor or fp8_e4m3_static_per_tensor.",
        ),
    ] = "int8_static_per_tensor",
    observer: Annotated[
        str,
        typer.Option(
            metavar="OBSERVER",
            help="absolute_maximum, absolute_maximum_127, minmax, percentile_99.9, percentile_99.99 or mse.",
        ),
    ] = "absolute_maximum",
    force: options.Force = False,
) -> None:
    """Derive static input scales and write them under llm-compressor's names."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_file

    check_file(out, force=force)

    from quantaudit.common.choices import check_observer, check_static
    from quantaudit.measure.profile import load_profile

    check_static(scheme)
    check_observer(observer)
    measured = load_profile(profile)

    from quantaudit.quant.export import save_scales

    count = save_scales(measured, out, scheme=scheme, observer=observer)
    console.say(f"wrote scales of {count} Linears to {out}")
