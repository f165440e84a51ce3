"""Options that several verbs share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, local folder, .gguf file, or `demo` (SmolLM2-135M-Instruct).")
]
Corpus = Annotated[str, typer.Option(metavar="CORPUS", help="`builtin`, or a .jsonl, .txt or .parquet file.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="auto (as stored), bfloat16, float16 or float32.")]
Revision = Annotated[str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of a Hub repository.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code shipped with the weights.")]
Samples = Annotated[
    int | None, typer.Option(metavar="N", min=2, help="Use N samples, fairly over domains; all by default.")
]
MaxLength = Annotated[int, typer.Option(metavar="TOKENS", min=2, help="Cut samples to this many tokens.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Samples in one forward pass.")]
Experts = Annotated[
    str,
    typer.Option(
        metavar="TOKENS",
        help="Run experts on the tokens `routed` to them, or on `all`, as llm-compressor's oneshot calibrates them: "
        "their work times the experts over the chosen ones.",
    ),
]
EvaluationTokens = Annotated[
    int, typer.Option(metavar="TOKENS", min=16, help="Tokens that damage and whole-model scores are taken on.")
]
Score = Annotated[
    str,
    typer.Option(
        metavar="SCORE",
        help="gradient: groups priced in nats by a backward pass; damage: forward passes only; auto: what fits.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="SEED", help="Seed of the calibration/evaluation split.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
OutFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")]
ProfileFile = Annotated[Path | None, typer.Option(metavar="PROFILE", help="Use a profile measured before.")]
