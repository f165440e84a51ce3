"""`quantaudit.conform`: a quantized artifact that exists already, against the card of the model it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.api.arguments import card_of, path_of

if TYPE_CHECKING:
    from quantaudit.card.schema import Card
    from quantaudit.conform.run import Conformance


def conform(
    artifact: str | Path, card: Card | str | Path, *, policy: str | Path = "default", require_sealed: bool = False
) -> Conformance:
    """Check a quantized model: all that its configuration calls for, and ranges against what was measured.

    artifact: folder saved by llm-compressor or optimum-quanto, or an OpenVINO model (.xml). require_sealed: refuse a
    card that was edited after it was written, or has no seal. Raises ModelError where it
    is no quantized artifact, cannot be read, or is of another model than the card.

    >>> result = quantaudit.conform("CHECKPOINT", "quantaudit-demo/card.json")
    >>> [finding.code for finding in result.findings if finding.severity == "error"]
    []
    """
    from quantaudit.card.seal import check_sealed
    from quantaudit.errors import ModelError
    from quantaudit.policy import load_policy

    path = path_of(artifact, "artifact")
    if not path.exists():
        raise ModelError(
            "no such artifact",
            where=str(path),
            hint="give a folder with a quantized model, or an OpenVINO model (.xml)",
        )
    rules, read = load_policy(str(policy)), card_of(card)
    if require_sealed:
        check_sealed(read, "card" if read is card else str(card))
    from quantaudit.conform.artifacts.read import read_artifact
    from quantaudit.conform.run import conform as run

    return run(read_artifact(path, read.model.modules), read, rules)
