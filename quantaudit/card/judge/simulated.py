"""Rules about a simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator

from quantaudit.card.judge.evidence import CardEvidence
from quantaudit.card.text import counted, share_in_words
from quantaudit.common.findings import Hit, rule
from quantaudit.common.rounding import decimals, significant
from quantaudit.policy import Policy
from quantaudit.policy.evidence import kl_interval, too_few
from quantaudit.provenance import ModelInfo
from quantaudit.simulate.records import RecipeRow, SchemeInfo, Simulation, TensorErrorRow
from quantaudit.simulate.sensitivity.ranking import worst_first

GOOD_SQNR_DB = 20.0
"""The SQNR that arXiv 2605.15572 takes for a pass."""
LITTLE_BETTER = 0.1
"""Perplexity over that of token frequencies: trained models on text of their own kind lie near a hundredth. Small ones,
and other kinds of text, lie above; so does a model that was loaded nearly right. Nothing but a person tells which."""
LOSS_SPREAD = 3.0
"""Standard deviation of one token's loss, in nats: what language models show on ordinary text."""


@rule(
    "QA104",
    "A model that predicts the evaluation text worse than token frequencies do, or of which that is not known.",
    severity="error",
    why="Such a model was loaded wrongly, or was given another model's tokens; nothing measured on it can be trusted.",
    remedy="Check that weights and tokenizer belong together and were converted completely; of a GGUF, audit the "
    "original checkpoint instead.",
)
def broken_load(evidence: CardEvidence) -> Iterator[Hit]:
    """A model that predicts the evaluation text worse than token frequencies, or than guessing tokens at random.

    Only where so few tokens do not explain it: a random model has a verdict, as QA115 says. No verdict rests on others.
    """
    if evidence.simulation is not None:
        yield from worse_than_guessing(evidence.simulation, evidence.provenance.model, evidence.policy)


def worse_than_guessing(simulation: Simulation, model: ModelInfo, policy: Policy) -> Iterator[Hit]:
    """QA104 of a simulation alone.

    An infinite perplexity is null in a record; there, the logits are finite nevertheless. Not finite ones are QA102's.
    """
    row = next(iter(simulation.recipes), None)
    if row is None or (row.perplexity_base is None and row.kl is None):
        return
    perplexity = math.inf if row.perplexity_base is None else row.perplexity_base
    evaluation, rules = simulation.evaluation, policy.perplexity_over_unigram
    predicted = max(evaluation.tokens - len(evaluation.samples), 0)
    guessing = evaluation.unigram_perplexity or float(model.vocab_size)
    limit = rules.error * guessing
    shown = f"perplexity {_perplexity(perplexity, guessing)} against {_perplexity(guessing, perplexity)}"
    if perplexity > limit * chance(predicted):
        yield Hit(
            message=f"the unquantized model predicts the text worse than token frequencies do ({shown})",
            value=perplexity,
            threshold=limit * chance(predicted),
            why=rules.reason,
        )
    elif evaluation.unigram_perplexity is None:
        yield Hit(
            message="how well token frequencies predict the evaluation text is not known, so that nothing shows that "
            "the unquantized model was loaded rightly",
            value=perplexity,
            severity="warning",
            why=rules.reason,
            remedy="Simulate again, on samples of two tokens of text at least.",
        )


def _perplexity(value: float, other: float) -> str:
    """Rounded, but on its own side of another one."""
    return f"{value:,.0f}" if value >= 1000 and f"{value:,.0f}" != f"{other:,.0f}" else decimals(value, other, digits=1)


@rule(
    "QA115",
    "A model that predicts the evaluation text little better than token frequencies do, or not better by chance.",
    severity="info",
    why="Trained models are some hundred times better on text of their own kind; one that was loaded nearly right, "
    "with another model's configuration for instance, is not.",
    remedy="Compare with the perplexity that the model is published with; check config.json and tokenizer.",
)
def little_better(evidence: CardEvidence) -> Iterator[Hit]:
    """No verdict rests on it: small models, and models on other text than their own, are so as well."""
    if (simulation := evidence.simulation) is None:
        return
    row, guessing = next(iter(simulation.recipes), None), simulation.evaluation.unigram_perplexity
    if row is None or row.perplexity_base is None or guessing is None:
        return
    perplexity = row.perplexity_base
    wrong = next(worse_than_guessing(simulation, evidence.provenance.model, evidence.policy), None)
    if wrong is None and perplexity > LITTLE_BETTER * guessing:
        yield Hit(
            message=f"the perplexity of the unquantized model is {perplexity / guessing:.2f} of that of token "
            f"frequencies ({_perplexity(perplexity, guessing)} of {_perplexity(guessing, perplexity)})",
            value=perplexity,
            threshold=LITTLE_BETTER * guessing,
            severity="warning" if perplexity > guessing else None,
        )


def chance(tokens: int) -> float:
    """Factor by which a perplexity over so many tokens may be too high by chance: two standard errors of its log."""
    return math.exp(2 * LOSS_SPREAD / math.sqrt(max(tokens, 1)))


@rule(
    "QA107",
    "On how many tokens the verdicts rest, where they are too few, or leave a KL on either side of a limit.",
    severity="warning",
    why="KL varies from text to text: on few tokens, or near a limit, the choice of text decides as much as the scheme "
    "does.",
    remedy="Raise --evaluation-tokens, and give more samples of the text that the model is used on.",
)
def few_tokens(evidence: CardEvidence) -> Iterator[Hit]:
    """On how many tokens the verdicts rest: a warning where they are few, information where a KL lies near a limit."""
    simulation, policy = evidence.simulation, evidence.policy
    if simulation is None:
        return
    names = {scheme.name for scheme in simulation.schemes}
    scored = [row for row in simulation.recipes if row.name in names and row.kl is not None]
    if not scored:
        return
    evaluation, limit = simulation.evaluation, policy.evaluation
    few = too_few(evaluation.tokens, len(evaluation.samples), limit) is not None
    near = [row for row in scored if _crosses(row, policy)]
    if not few and not near:
        return
    row = next(iter(near), scored[0])
    error = "unknown" if row.kl_stderr is None else f"{row.kl_stderr:.2g}"
    message = (
        f"the verdicts rest on {counted(evaluation.tokens, 'token')} of {counted(len(evaluation.samples), 'sample')}; "
        f"the KL of {row.title} is {significant(row.kl or 0.0, *policy.kl.both)} nats with a standard error of {error}"
    )
    if near:
        message += ", too near a limit to tell the sides apart"
    yield Hit(
        severity="warning" if few else "info",
        message=message,
        value=float(evaluation.tokens),
        threshold=float(limit.tokens),
        why=limit.reason,
    )


def _crosses(row: RecipeRow, policy: Policy) -> bool:
    """Whether the interval of a KL has a limit of the verdict inside it."""
    interval = kl_interval(row, policy.evaluation)
    return interval is not None and any(interval.low <= limit < interval.high for limit in policy.kl.both)


@rule(
    "QA301",
    "Fused groups whose quantization alone damages their block, one finding for each scheme.",
    severity="warning",
    why="Damage is the relative squared change of a decoder block's output, and damages of many groups add up in the "
    "logits.",
    remedy="Give these groups per-token scales, or leave them unquantized.",
)
def damage(evidence: CardEvidence) -> Iterator[Hit]:
    """Fused groups whose quantization alone damages their block, one hit for each scheme."""
    simulation, limit = evidence.simulation, evidence.policy.damage
    if simulation is None:
        return
    for scheme in simulation.schemes:
        rows = [
            row
            for row in worst_first(row for row in simulation.groups if row.scheme == scheme.name)
            if row.damage is not None and row.damage > limit.warning
        ]
        if rows:
            yield Hit(
                module=rows[0].group,
                message=f"{scheme.title} damages {counted(len(rows), 'fused group')} noticeably, `{rows[0].group}` "
                "hurts most",
                value=rows[0].damage,
                threshold=limit.warning,
                why=limit.reason,
                remedy=_gentler(scheme),
            )


def _gentler(scheme: SchemeInfo) -> str:
    """What hurts less than a scheme: a scale for each token, where it has none; else to leave groups alone."""
    inputs = scheme.input_activations
    if inputs is None:
        return "Give weights more bits or smaller groups, or leave these groups unquantized."
    if inputs.get("dynamic") and inputs.get("strategy") == "token":
        return "Quantize the weights of these groups alone, or leave them unquantized."
    return "Give these groups per-token scales, or leave them unquantized."


@rule(
    "QA302",
    "Tensors that a static scheme rounds to zero, and how many of them an SQNR check would pass.",
    severity="warning",
    why="Such a tensor carries its peaks alone; its SQNR can look good all the same, because the peaks dominate it.",
    remedy="Give these tensors per-token scales; a percentile clip would cut off the peaks instead.",
)
def zeroed(evidence: CardEvidence) -> Iterator[Hit]:
    """Tensors that a static scheme rounds to zero, and how many of them an SQNR check would pass."""
    simulation, policy = evidence.simulation, evidence.policy
    if simulation is None:
        return
    for scheme in simulation.schemes:
        rows = zeroed_tensors(simulation, scheme, policy)
        if rows:
            share, worst = rows[0]
            hidden = sum((row.sqnr_db or 0.0) >= GOOD_SQNR_DB for _, row in rows)
            yield Hit(
                module=worst.group,
                message=f"{scheme.title} rounds most values of {counted(len(rows), 'tensor')} to zero "
                f"(`{worst.group}`: {share_in_words(share, policy.zeroed_fraction.warning)}); {hidden} of them would "
                "pass an SQNR check",
                value=share,
                threshold=policy.zeroed_fraction.warning,
                why=policy.zeroed_fraction.reason,
            )


def zeroed_tensors(simulation: Simulation, scheme: SchemeInfo, policy: Policy) -> list[tuple[float, TensorErrorRow]]:
    """(zeroed fraction, row) of the tensors beyond the policy's limit under a static scheme, worst first."""
    rows = [
        (row.zeroed_fraction, row)
        for row in simulation.sites
        if row.scheme == scheme.name
        and row.observer == scheme.observer
        and row.zeroed_fraction is not None
        and row.zeroed_fraction > policy.zeroed_fraction.warning
    ]
    return sorted(rows, key=lambda pair: -pair[0])
