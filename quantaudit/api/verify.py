"""`quantaudit.verify`: run a recipe for real, and compare what comes out with the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from quantaudit.api.arguments import case_of, claimed_for, path_of, shown
from quantaudit.settings import CaseOptions

if TYPE_CHECKING:
    from quantaudit.card.schema import Verification


def verify(
    recipe: str | Path,
    card: str | Path,
    *,
    save: str | Path | None = None,
    pipeline: Literal["basic", "sequential", "independent"] = "basic",
    tolerance: float = 0.05,
    policy: str | Path = "default",
    progress: bool | None = None,
    **options: Unpack[CaseOptions],
) -> Verification:
    """Let llm-compressor run a recipe on the card's calibration samples, and compare scales, KL and perplexity.

    The result is added to the card. save: folder where the quantized checkpoint stays; discarded by default. tolerance:
    relative difference of the KL that still agrees. options: the fields of `CaseSpec`. Two models are in memory at a
    time. Raises a QuantauditError that names cause and remedy.

    >>> result = quantaudit.verify("recipes/w8a8_dynamic.yaml", "quantaudit-demo/card.json", evaluation_tokens=64)
    >>> result.weight_scales.worst
    0.0
    """
    from quantaudit.pipeline.case import read_case

    case = case_of(recipe, card, dict(options))
    folder = None if save is None else path_of(save, "save")
    files = read_case(case)
    with claimed_for(case, "save", folder, folder=True), shown(progress) as (stages, say):
        stages("starting", 0)
        from quantaudit.pipeline.verify import verify_case
        from quantaudit.verify.run import VerifyOptions

        chosen = VerifyOptions(save=folder, pipeline=pipeline, tolerance=tolerance)
        return verify_case(files, chosen, policy=str(policy), stages=stages, say=say)
