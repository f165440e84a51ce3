"""Where a card's numbers come from, as pages list it."""

from __future__ import annotations

from quantaudit.card.schema import Card
from quantaudit.card.seal import seal_state
from quantaudit.card.text import ABSENT, PRODUCTS, counted, sample_count

_SPECIAL_TOKENS = {"auto": "as deployed, with the chat template", "none": "none, nor a chat template"}
_SEALS = {"sealed": "holds", "edited": "does not fit: edited after it was written", "unsealed": "none"}


def provenance_lines(card: Card) -> list[tuple[str, str]]:
    """(label, value) of the model, the corpus, the environment and the simulation."""
    model, corpus, environment = card.model, card.corpus, card.environment
    pairs = [
        ("created", card.created),
        ("seal", _SEALS[seal_state(card)]),
        ("model", model.spec),
        ("revision", model.revision or ABSENT),
        ("fingerprint of the weights", model.fingerprint),
        ("SHA-256 of the configuration", model.config_sha256),
        ("loading", "; ".join(model.notes) or "as saved"),
        (
            "corpus",
            f"{corpus.name}: {sample_count(corpus)}, {counted(corpus.tokens, 'token')}, {corpus.truncated:,} truncated"
            + (f", {corpus.images:,} with images" if corpus.images else ""),
        ),
        ("revision of the corpus", corpus.revision or ABSENT),
        ("SHA-256 of the corpus", corpus.sha256),
        ("special tokens", _SPECIAL_TOKENS[corpus.special_tokens]),
        (
            "calibration",
            f"{counted(corpus.calibration.samples, 'sample')}, {counted(corpus.calibration.tokens, 'token')}",
        ),
        ("evaluation", f"{counted(corpus.evaluation.samples, 'sample')}, {counted(corpus.evaluation.tokens, 'token')}"),
        ("seeds", f"corpus {corpus.seed}, run {environment.seed}"),
        (
            "forward passes",
            f"{model.dtype}, {PRODUCTS[environment.arithmetic]}, {environment.attention} attention, "
            f"{environment.device}",
        ),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items())),
        ("Python", f"{environment.python} on {environment.platform}"),
        ("time", ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in environment.timings.items()) or ABSENT),
    ]
    if card.simulation:
        evaluation = card.simulation.evaluation
        simulated = f"{counted(evaluation.tokens, 'token')}, at most {evaluation.max_tokens_per_sample:,} a sample"
        arithmetic = f"{evaluation.arithmetic}, {PRODUCTS[evaluation.products]}"
        pairs.append(("simulation", f"{simulated}, in {arithmetic}"))
    return pairs
