"""Verifying: a recipe of a card's model is run for real, and the result is added to the card."""

from __future__ import annotations

from functools import partial

from quantaudit.card.amend import amend_card
from quantaudit.card.schema import Verification
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.pipeline.case import Case, CaseFiles, open_case
from quantaudit.pipeline.prepare import Say, load_again, silent
from quantaudit.pipeline.schedule import announce_stages, loading_seconds
from quantaudit.policy import load_policy
from quantaudit.recipe.parse import read_recipe
from quantaudit.simulate.cost import AGAIN, RENDERING, calibrating, verify_stages
from quantaudit.verify.predict import calibrates_again
from quantaudit.verify.run import VerifyOptions, verify, with_verification


def verify_case(
    files: CaseFiles,
    options: VerifyOptions,
    *,
    policy: str = "default",
    stages: Stages = silent_stages,
    say: Say = silent,
) -> Verification:
    """Let llm-compressor run a recipe on the card's calibration samples, and compare scales, KL and perplexity.

    policy: name or file. Raises QuantauditErrors for files that do not belong together, and as `verify` does.
    """
    rules = load_policy(policy)
    case = open_case(files, stages, say)
    with case.inputs.computed():
        _announce(case, stages, say)
        opened = case.opened
        # Quantized in place: before two more models are loaded, this one goes, so that nothing here may refer to it.
        del case
        reload = partial(load_again, files.inputs.settings, files.profile.provenance.model)
        verified = verify(opened, reload, files.card, rules, options, stages=stages)
    stages(RENDERING, 0)
    amend_card(files.spec.card, partial(with_verification, verified=verified), of=files.card.created)
    return verified.result


def _announce(case: Case, stages: Stages, say: Say) -> None:
    """What will not be predicted, and how long the rest takes."""
    for change in case.opened.resolution.unsimulated:
        say(f"not in the prediction: {change.modifier}: {change.reason}")
    calibration = case.inputs.corpus.info.calibration.tokens
    recipe, modifiers = case.opened.resolution.as_recipe(case.opened.name), len(read_recipe(case.opened.path).modifiers)
    calibrations = [(calibrating(recipe.name), recipe.calibration_passes * calibration)]
    announce_stages(
        case.inputs,
        stages,
        say,
        f"llm-compressor on {calibration:,} calibration tokens, and scores on {case.evaluated:,} evaluation tokens",
        lambda speed: verify_stages(
            case.evaluated,
            speed,
            calibrations=calibrations,
            again=[(AGAIN, calibration), *calibrations] if calibrates_again(case.opened) else [],
            oneshot=modifiers * calibration,
            sites=len(case.files.card.sites),
            loading=loading_seconds(stages),
        ),
        tapped=True,
    )
