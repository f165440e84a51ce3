"""Adding up profiles of one run: shards, ranks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantaudit.errors import FormatError
from quantaudit.measure.profile.record import Profile
from quantaudit.provenance import Provenance, ShardsInfo, Split, Unmeasured
from quantaudit.stats import site as statistics
from quantaudit.stats.site import SiteStatistics

SHARDING = "as `quantaudit measure --shard 1/2 …` and `--shard 2/2 …` make them"
"""How parts that add up are made."""


def merge(a: Profile, b: Profile) -> Profile:
    """Add up two profiles of the same run: ranks, shards. Raises FormatError where they are of different runs.

    All shards of a run give the very profile that one run over its whole corpus writes; some of them, one that says
    which.
    """
    _check_one_run(a.provenance, b.provenance)
    shards = _united_shards(a.provenance.shards, b.provenance.shards)
    if twice := _samples(a) & _samples(b):
        raise FormatError(
            f"{len(twice)} samples are in both profiles, such as {a.samples[min(twice)].id}",
            hint=f"merge shards that share no sample, {SHARDING}",
        )
    combined = dict(a.statistics)
    for key, value in b.statistics.items():
        combined[key] = statistics.merge(combined[key], value) if key in combined else value
    padded = {*a.provenance.corpus.padded, *b.provenance.corpus.padded}
    corpus = a.provenance.corpus.model_copy(update={"padded": [s.id for s in a.samples if s.id in padded]})
    provenance = a.provenance.model_copy(
        update={
            "corpus": corpus,
            "token_text": _token_text(a, b, combined),
            "unmeasured": _never_fired_in_both(a, b),
            "shards": shards,
        }
    )
    return Profile.assemble(provenance, combined)


def _check_one_run(a: Provenance, b: Provenance) -> None:
    hint = f"merge shards of one model and one corpus only, {SHARDING}"
    if a.corpus.redacted != b.corpus.redacted:
        raise FormatError("one of the profiles is redacted", hint="merge profiles as they were measured, then redact")
    for part in ("model", "samples", "sites"):
        if getattr(a, part) != getattr(b, part):
            raise FormatError(f"profiles differ in their {part}", hint=hint)
    if a.corpus.model_copy(update={"padded": []}) != b.corpus.model_copy(update={"padded": []}):
        raise FormatError("profiles differ in their text, or in how it was tokenized", hint=hint)
    if a.environment.attention != b.environment.attention:
        raise FormatError(
            "profiles were measured with different attention implementations", hint="measure all shards alike"
        )
    if a.environment.arithmetic != b.environment.arithmetic:
        raise FormatError(
            "profiles were measured with different arithmetic",
            hint="measure all shards alike: --arithmetic native, or float32",
        )
    divided = [(p.environment.batch_size, p.environment.batch_tokens) for p in (a, b)]
    if (a.shards or b.shards) and divided[0] != divided[1]:
        raise FormatError(
            "shards were measured with different --batch-size or --batch-tokens", hint="measure all shards alike"
        )


def _united_shards(a: ShardsInfo | None, b: ShardsInfo | None) -> ShardsInfo | None:
    """What two profiles hold together; None where that is the whole run. Raises FormatError where they overlap."""
    if a is None and b is None:
        return None
    if a is None or b is None:
        raise FormatError(
            "one of the profiles is of the whole run, the other a shard", hint=f"merge shards only, {SHARDING}"
        )
    if a.count != b.count:
        raise FormatError(
            f"one profile holds {a.named()}, the other {b.named()}", hint="measure all shards with the same --shard …/N"
        )
    if twice := sorted(set(a.held) & set(b.held)):
        raise FormatError(f"shard {twice[0]} of {a.count} is in both profiles", hint="give each shard once")
    both = ShardsInfo(count=a.count, held=sorted([*a.held, *b.held]))
    return both if both.missing else None


def _token_text(a: Profile, b: Profile, combined: Mapping[tuple[str, Split], SiteStatistics]) -> dict[int, str]:
    """Text of the tokens of both; of shards, only of those that are still at peaks, as one run would list them."""
    texts = {**a.provenance.token_text, **b.provenance.token_text}
    if a.provenance.shards is not None:
        kept = {int(token) for value in combined.values() for token in np.unique(value.peaks.token)}
        texts = {token: text for token, text in texts.items() if token in kept}
    return dict(sorted(texts.items()))


def _never_fired_in_both(a: Profile, b: Profile) -> list[Unmeasured]:
    """What ran in neither profile, or was not understood in one.

    Where one knows that the module around it ran, its reason is the one that holds.
    """
    rows_a, rows_b = (
        {row.module: row for row in profile.provenance.unmeasured if row.cause != "undersampled"} for profile in (a, b)
    )
    in_both = [max(row, rows_b[name], key=_certainty) for name, row in rows_a.items() if name in rows_b]
    either = {**rows_b, **rows_a}
    listed = {row.module for row in in_both}
    return in_both + [row for name, row in either.items() if row.cause == "other_rows" and name not in listed]


def _certainty(row: Unmeasured) -> int:
    """Which of two reasons for one module holds: what is known of the module, then of the one around it."""
    return 2 if row.cause == "other_rows" else 1 if row.cause == "uncalled" else 0


def _samples(profile: Profile) -> set[int]:
    """Samples that reached any site."""
    return {int(sample) for value in profile.statistics.values() for sample in value.extremes.sample}
