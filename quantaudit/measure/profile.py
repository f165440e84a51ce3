"""Profile: what was measured, and on what. Reads and writes without torch.

`profile.safetensors` holds the arrays of each site and split as `<site>/<split>/<array>` and one metadata key with
JSON (`format_version`, provenance). Equal measurements give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from quantaudit.common.files import write_bytes
from quantaudit.common.outputs.file_set import finish
from quantaudit.errors import FormatError
from quantaudit.measure.digest import content_digest
from quantaudit.provenance import SPLITS, Provenance, SampleInfo, ShardsInfo, SiteInfo, Split, Unmeasured, explain
from quantaudit.stats import site as statistics
from quantaudit.stats.check import problems
from quantaudit.stats.distribution import Distribution, Encoding
from quantaudit.stats.extremes import Extremes
from quantaudit.stats.peaks import Peaks
from quantaudit.stats.site import SiteStatistics

FORMAT_VERSION = 2
"""History: 1 first edition; 2 the median of a peak's own token, and the number of massive activations."""

EXPERT_TOKENS = 16
"""Routed tokens that an expert must see to count as measured."""
SHARDING = "as `quantaudit measure --shard 1/2 …` and `--shard 2/2 …` make them"
"""How parts that add up are made."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Statistics by (site name, split) with their provenance; a site that never fired has none."""

    provenance: Provenance
    statistics: Mapping[tuple[str, Split], SiteStatistics]

    def __repr__(self) -> str:
        """One line: its arrays hold millions of numbers."""
        model, corpus = self.provenance.model, self.provenance.corpus
        return (
            f"Profile({model.name[:70]!r}, {len(self.sites):,} sites, {corpus.tokens:,} tokens of {corpus.samples:,} "
            f"samples, {len(self.provenance.unmeasured):,} modules not measured)"
        )

    @property
    def sites(self) -> list[SiteInfo]:
        """All sites, in the order of the forward pass."""
        return self.provenance.sites

    @cached_property
    def by_name(self) -> Mapping[str, SiteInfo]:
        """Site name → site."""
        return {site.name: site for site in self.sites}

    @property
    def experts(self) -> Literal["routed", "all"] | None:
        """Which tokens the experts were run on; None for a model without experts."""
        merged = any(site.kind == "expert_input_all" and site.parts for site in self.sites)
        return "all" if merged else "routed" if any(site.kind == "expert_input" for site in self.sites) else None

    @property
    def samples(self) -> list[SampleInfo]:
        """All samples; statistics name them by their index here."""
        return self.provenance.samples

    def split(self, site: str, split: Split) -> SiteStatistics | None:
        """One site's statistics in one split; None where it saw nothing."""
        return self.statistics.get((site, split))

    def calibration(self, site: str) -> SiteStatistics | None:
        """What a static scale is taken from: the calibration split, of an expert's input over all tokens where known.

        llm-compressor's `oneshot` calibrates experts on all tokens, routed to them or not. None without any token.
        """
        return self.split(self.by_name[site].all_tokens or site, "calibration")

    def whole(self, site: str) -> SiteStatistics | None:
        """One site's statistics over both splits, merged once and kept; None where it saw nothing."""
        if site not in self._wholes:
            parts = [part for name in SPLITS if (part := self.split(site, name)) is not None]
            self._wholes[site] = reduce(statistics.merge, parts) if parts else None
        return self._wholes[site]

    @cached_property
    def _wholes(self) -> dict[str, SiteStatistics | None]:
        return {}

    def input_site(self, member: str) -> SiteInfo | None:
        """The tensor that one Linear reads: of an expert's Linear its own, not its layer's. None where none is tapped.

        member: full module path.
        """
        return self._input_sites.get(member)

    @cached_property
    def _input_sites(self) -> Mapping[str, SiteInfo]:
        by_kind = {"linear_input": 0, "expert_input": 1}
        sites = sorted((site for site in self.sites if site.kind in by_kind), key=lambda site: by_kind[site.kind])
        return {member: site for site in sites for member in site.members}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what was measured; equal for equal measurements, and for a profile and its redacted copy."""
        rows = ((f"{site}/{split}/{value.distribution.encoding}", value) for (site, split), value in self._sorted())
        return content_digest(self.provenance, ((key, arrays_of(value)) for key, value in rows))

    def _sorted(self) -> list[tuple[tuple[str, Split], SiteStatistics]]:
        return sorted(self.statistics.items())

    @classmethod
    def assemble(cls, provenance: Provenance, statistics: Mapping[tuple[str, Split], SiteStatistics]) -> Profile:
        """A profile whose undersampled experts are listed as unmeasured, next to what never ran.

        provenance: its `unmeasured` lists everything but undersampled experts.
        """
        profile = cls(provenance=provenance, statistics=statistics)
        unmeasured = merge_unmeasured(provenance.unmeasured, undersampled_experts(profile))
        return cls(provenance=provenance.model_copy(update={"unmeasured": unmeasured}), statistics=statistics)


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
    if (a.shards or b.shards) and a.environment.batch_size != b.environment.batch_size:
        raise FormatError("shards were measured with different --batch-size", hint="measure all shards alike")


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


def undersampled_experts(profile: Profile) -> list[Unmeasured]:
    """Linears of experts that saw fewer than EXPERT_TOKENS tokens: too few to know their range.

    Tokens routed to an expert count; all tokens do where all inputs of the expert are known over all of them.
    """
    rows = []
    for site in undersampled_inputs(profile):
        reason = f"expert saw {tokens(profile, site.name)} tokens, fewer than {EXPERT_TOKENS}"
        rows += [
            Unmeasured(module=member, reason=reason, weights=True, cause="undersampled") for member in site.members
        ]
    return rows


def undersampled_inputs(profile: Profile) -> list[SiteInfo]:
    """Inputs of experts that saw too few tokens."""
    inputs = [site for site in profile.sites if site.kind == "expert_input"]
    only_routed = {site.parent for site in inputs if site.all_tokens is None}

    def counted_site(site: SiteInfo) -> str:
        return site.name if site.parent in only_routed else site.all_tokens or site.name

    return [site for site in inputs if tokens(profile, counted_site(site)) < EXPERT_TOKENS]


def merge_unmeasured(never_fired: Sequence[Unmeasured], undersampled: Sequence[Unmeasured]) -> list[Unmeasured]:
    """All that was not measured, each module for one reason: what never ran is not called undersampled too."""
    listed = {row.module for row in never_fired}
    return [*never_fired, *(row for row in undersampled if row.module not in listed)]


def tokens(profile: Profile, site: str) -> int:
    """Tokens of a site in both splits."""
    return sum(part.tokens for split in SPLITS if (part := profile.split(site, split)) is not None)


def _samples(profile: Profile) -> set[int]:
    """Samples that reached any site."""
    return {int(sample) for value in profile.statistics.values() for sample in value.extremes.sample}


def save_profile(profile: Profile, path: str | Path) -> None:
    """Write atomically. Raises OutputError.

    >>> quantaudit.save_profile(quantaudit.load_profile("profile.safetensors"), "copy.safetensors")
    """
    write_bytes(Path(path), profile_bytes(profile))


def profile_bytes(profile: Profile) -> bytes:
    """A profile as a safetensors file; the same bytes for the same statistics and provenance."""
    arrays, encodings = statistics_arrays(profile.statistics)
    # One key only: safetensors writes several metadata keys in random order.
    metadata = {
        "format_version": FORMAT_VERSION,
        "encodings": encodings,
        "provenance": profile.provenance.model_dump(mode="json"),
    }
    data: bytes = save(arrays, metadata={"quantaudit": json.dumps(metadata, ensure_ascii=False)})
    return data


def statistics_arrays(
    statistics: Mapping[tuple[str, Split], SiteStatistics],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Statistics as arrays by `<site>/<split>/<name>`, and by `<site>/<split>/` how values are encoded."""
    arrays: dict[str, np.ndarray] = {}
    encodings: dict[str, str] = {}
    for (site, split), value in sorted(statistics.items()):
        key = f"{site}/{split}/"
        encodings[key] = value.distribution.encoding
        arrays |= {key + name: np.ascontiguousarray(array) for name, array in arrays_of(value).items()}
    return arrays, encodings


def statistics_from(
    arrays: Mapping[str, np.ndarray], encodings: Mapping[str, Encoding]
) -> dict[tuple[str, Split], SiteStatistics]:
    """The inverse of `statistics_arrays`. Raises KeyError, TypeError and ValueError for others."""
    return {_key(key): _statistics(key, value, arrays) for key, value in encodings.items()}


def load_profile(path: str | Path, *, whole: bool = True) -> Profile:
    """Read a profile. Raises FormatError when it is missing, truncated, or not a profile of this version.

    whole: whether one that holds only some shards of its run is refused, as all but `merge` do.

    >>> profile = quantaudit.load_profile("profile.safetensors")
    >>> profile.sites[0].name
    'embedding'
    """
    path = Path(path)
    finish(path.parent)
    profile = _load_profile(path)
    if whole:
        check_whole(profile, str(path))
    return profile


def check_whole(profile: Profile, where: str) -> None:
    """Raises FormatError for a profile that holds only some shards of its run."""
    shards = profile.provenance.shards
    if shards is not None:
        raise FormatError(
            f"profile holds {shards.named()} only",
            where=where,
            hint=f"add shard {', '.join(map(str, shards.missing))} with `quantaudit merge`",
        )


def _load_profile(path: Path) -> Profile:
    if not path.is_file():
        problem = "a folder, not a file" if path.is_dir() else "no such file"
        raise FormatError(problem, where=str(path), hint="make one with `quantaudit measure`")
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get("quantaudit")
            if header is None:
                raise FormatError(
                    "a safetensors file, and no profile", where=str(path), hint="give what `quantaudit measure` wrote"
                )
            metadata = json.loads(header)
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        if metadata["format_version"] != FORMAT_VERSION:
            raise FormatError(
                f"profile has format {metadata['format_version']}, this version reads {FORMAT_VERSION}",
                where=str(path),
                hint="measure again",
            )
        provenance = Provenance.model_validate(metadata["provenance"])
        held = statistics_from(arrays, metadata["encodings"])
        _check_possible(provenance, held)
        return Profile(provenance=provenance, statistics=held)
    except ValidationError as error:
        raise FormatError(f"not a profile: {explain(error)}", where=str(path), hint="measure again") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"not a readable profile: {reason}", where=str(path), hint="measure again") from error


def _check_possible(provenance: Provenance, held: Mapping[tuple[str, Split], SiteStatistics]) -> None:
    """Raises ValueError where statistics cannot be of a tensor of this run."""
    names = {site.name for site in provenance.sites}
    for (site, split), value in held.items():
        if site not in names:
            raise ValueError(f"{site} is not among its sites")
        for problem in problems(value, len(provenance.samples)):
            raise ValueError(f"{site}, {split}: {problem}")


def arrays_of(value: SiteStatistics) -> dict[str, np.ndarray]:
    """The statistics of one tensor as the arrays that a file holds, by name."""
    d, e, p = value.distribution, value.extremes, value.peaks
    return {
        "patterns": d.patterns,
        # A mixture has tens of thousands of distributions, with small counts in nearly all of them.
        "counts": d.counts.astype(np.min_scalar_type(int(d.counts.max(initial=0)))),
        "sample": e.sample,
        "tokens": e.tokens,
        "min": e.min,
        "max": e.max,
        "channel_amax": value.channel_amax,
        "peak_value": p.value,
        "peak_sample": p.sample,
        "peak_position": p.position,
        "peak_token": p.token,
        "peak_channel": p.channel,
        "peak_median": p.median,
        "massive": np.asarray([value.massive], np.int64),
    }


def _key(key: str) -> tuple[str, Split]:
    site, split = key.removesuffix("/").rsplit("/", 1)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}")
    return site, split


def _statistics(key: str, encoding: Encoding, arrays: Mapping[str, np.ndarray]) -> SiteStatistics:
    if encoding not in get_args(Encoding):
        raise ValueError(f"unknown encoding {encoding!r}")
    return SiteStatistics(
        distribution=Distribution(
            encoding=encoding, patterns=arrays[key + "patterns"], counts=arrays[key + "counts"].astype(np.int64)
        ),
        extremes=Extremes(
            sample=arrays[key + "sample"],
            tokens=arrays[key + "tokens"],
            min=arrays[key + "min"],
            max=arrays[key + "max"],
        ),
        channel_amax=arrays[key + "channel_amax"],
        peaks=Peaks(
            value=arrays[key + "peak_value"],
            sample=arrays[key + "peak_sample"],
            position=arrays[key + "peak_position"],
            token=arrays[key + "peak_token"],
            channel=arrays[key + "peak_channel"],
            median=arrays[key + "peak_median"],
        ),
        massive=int(arrays[key + "massive"][0]),
    )
