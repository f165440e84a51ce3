"""`profile.safetensors`: read and written without torch.

It holds the arrays of each site and split as `<site>/<split>/<array>` and one metadata key with JSON (`format_version`,
provenance). Equal measurements give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from quantaudit.common.files import write_bytes
from quantaudit.common.outputs.file_set import finish
from quantaudit.common.reading.json_document import check_text, parse_json
from quantaudit.common.reading.regular_files import special_kind
from quantaudit.errors import FormatError
from quantaudit.measure.profile.arrays import statistics_arrays, statistics_from
from quantaudit.measure.profile.record import Profile
from quantaudit.provenance import Provenance, Split, explain
from quantaudit.stats.check import problems
from quantaudit.stats.site import SiteStatistics

FORMAT_VERSION = 2
"""History: 1 first edition; 2 the median of a peak's own token, and the number of massive activations."""


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
        kind = "a folder" if path.is_dir() else special_kind(path)
        problem = "no such file" if kind is None else f"{kind}, not a file"
        raise FormatError(problem, where=str(path), hint="make one with `quantaudit measure`")
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get("quantaudit")
            if header is None:
                raise FormatError(
                    "a safetensors file, and no profile", where=str(path), hint="give what `quantaudit measure` wrote"
                )
            metadata = parse_json(header, unique=True)
            check_text(header, metadata)
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
