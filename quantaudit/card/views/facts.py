"""What a README says of a card, as values for its template: rows, names to copy, and sentences."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from quantaudit.card.published.lineage import lineage
from quantaudit.card.published.records import published
from quantaudit.card.schema import Card, SchemeVerdict
from quantaudit.card.text import ABSENT, kl_interval, number
from quantaudit.card.views.card_view import CardView
from quantaudit.common.choices import INT8_SCHEMES, STANDARD_SCHEMES, of_any_group_size
from quantaudit.provenance import REDACTED
from quantaudit.settings import CorpusSpec, SimulateOptions
from quantaudit.simulate.records import RecipeRow

LEAST_EVALUATED = 16
"""Tokens that `--evaluation-tokens` takes at least."""
DEFAULT_POLICY, SHIPPED_POLICIES = "default", ("strict", "default", "lenient")
_UNSAFE = re.compile(r"[^A-Za-z0-9._]+")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_FAMILY = re.compile(r"[^-_ ]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeLine:
    """A verdict as a row. interval: of its KL, in words, or None where it is not known; group: what hurts most;
    share: of share_of, in words.
    """

    verdict: SchemeVerdict
    interval: str | None
    group: str | None
    share: float | None
    share_of: str
    note: str


def scheme_lines(view: CardView) -> list[SchemeLine]:
    """One row for each scheme, in the card's order."""
    return [_scheme_line(view.card, verdict) for verdict in view.card.verdict.schemes]


def _scheme_line(card: Card, verdict: SchemeVerdict) -> SchemeLine:
    limits = card.verdict.limits.kl
    rows = card.simulation.recipes if card.simulation else []
    row = next((row for row in rows if row.name == verdict.scheme), None)
    if verdict.kl_low is not None:
        interval = f"{number(verdict.kl_low, limits)} to {number(verdict.kl_high, limits)}"
    else:
        interval = ABSENT if row is None else kl_interval(row, card.verdict.limits.level)
    worst = verdict.worst_groups[0] if verdict.worst_groups and verdict.status != "INCONCLUSIVE" else None
    note = verdict.reason if verdict.status == "INCONCLUSIVE" else _verified(card, row)
    return SchemeLine(
        verdict=verdict,
        interval=None if interval == ABSENT else interval,
        group=worst.group if worst else None,
        share=worst.share if worst else None,
        share_of=worst.share_of if worst else "",
        note=note,
    )


def _verified(card: Card, recipe: RecipeRow | None) -> str:
    digest = recipe.digest if recipe else None
    agreed = digest is not None and any(row.digest == digest and row.agrees for row in card.verification)
    return "a checkpoint of llm-compressor's agrees" if agreed else ""


def family(card: Card) -> tuple[str, list[float]]:
    """The model's family, and the published magnitudes of it, smallest first: by architecture, whatever the checkpoint
    is called, or else by the first part of its name.
    """
    own, name = lineage(card.model.model_type), _family(card.model.name)
    kin = {row.model: row.family for row in published().models if lineage(row.model_type) == own}
    named = {row.model for row in card.landscape.published if name and _same(_family(row.model), name)}
    others = [abs(row.peak) for row in card.landscape.published if row.peak and row.model in (kin or named)]
    families = {family for family in kin.values() if family}
    return families.pop() if len(families) == 1 else name, sorted(others)


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _family(name: str) -> str:
    match = _FAMILY.match(name.rpartition("/")[2])
    return match[0] if match else ""


def folder_name(card: Card) -> str:
    """A name for the quantized checkpoint that any shell takes as it is."""
    return f"{_UNSAFE.sub('-', card.model.name)[:60].strip('-.') or 'model'}-quantized"


def hub_id(card: Card) -> str | None:
    """The repository of a model that came from the Hub; None for one that lay on a machine, whose path says nothing."""
    spec = card.model.spec
    return spec if card.model.revision is not None and _HUB_ID.fullmatch(spec) and len(spec) < 100 else None


def model_argument(card: Card) -> str:
    """The model as commands take it: the folder that a README lies in, where it is not the Hub's."""
    return hub_id(card) or ("demo" if card.model.spec == "demo" else ".")


def report_command(card: Card) -> str:
    """The `quantaudit report` that makes the same card.

    A corpus that is a file on one machine is called FILE.
    """
    hub, corpus, usual = hub_id(card), card.corpus, CorpusSpec()
    words = ["quantaudit", "report", model_argument(card)]
    if hub and card.model.revision:
        words += ["--revision", card.model.revision]
    if corpus.spec != usual.corpus:
        words += ["--corpus", corpus.spec if corpus.revision and corpus.spec != REDACTED else "FILE"]
    if corpus.available is not None or (corpus.revision and corpus.spec != usual.corpus):
        words += ["--samples", str(corpus.samples)]
    if corpus.max_length != usual.max_length:
        words += ["--max-length", str(corpus.max_length)]
    if corpus.special_tokens != usual.special_tokens:
        words += ["--special-tokens", corpus.special_tokens]
    if corpus.seed != usual.seed:
        words += ["--seed", str(corpus.seed)]
    evaluated = card.simulation.evaluation.tokens if card.simulation else None
    if evaluated is not None and evaluated not in (0, SimulateOptions().evaluation_tokens):
        words += ["--evaluation-tokens", str(max(evaluated, LEAST_EVALUATED))]
    if card.verdict.schemes and card.verdict.policy != DEFAULT_POLICY:
        words += ["--policy", card.verdict.policy if card.verdict.policy in SHIPPED_POLICIES else "FILE"]
    return shlex.join([*words, *_scheme_options(card), "--out", "card/"])


def _scheme_options(card: Card) -> list[str]:
    """Options by which the same schemes are simulated: none for the standard ones, whether or not all fit the model."""
    shown = [verdict.scheme for verdict in card.verdict.schemes]
    left_out = [row.name for row in card.simulation.not_judged] if card.simulation else []
    families = {of_any_group_size(name) for name in (*shown, *left_out)}
    standard = families.issuperset(map(of_any_group_size, STANDARD_SCHEMES))
    simulated = STANDARD_SCHEMES if standard else INT8_SCHEMES
    others = [name for name in shown if of_any_group_size(name) not in map(of_any_group_size, simulated)]
    words = [] if standard or not shown else ["--schemes", "int8"]
    return [*words, *(word for name in others for word in ("--scheme", name))]
