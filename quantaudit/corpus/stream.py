"""Streams a dataset of the Hub, or a folder with one, through the `datasets` library: some rows, never all files."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantaudit.common.reading.regular_files import special_inside
from quantaudit.corpus.normalize import Normalized, check_columns, columns, made_of, normalize
from quantaudit.corpus.rows import CorpusRow, parse_row
from quantaudit.corpus.spec import SYNTAX, Spec
from quantaudit.errors import CorpusError
from quantaudit.provenance import SPLITS

SAMPLES = 512
"""Rows read where --samples does not say how many: what llm-compressor's examples calibrate on."""
BUFFER = 1000
"""Rows that are shuffled at once: more would have to be downloaded before the first sample is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What was read of a dataset. revision: its commit, None for a folder; notes: what was left out."""

    name: str
    revision: str | None
    rows: list[CorpusRow]
    notes: list[str]


def read(spec: Spec, samples: int, seed: int) -> Read:
    """The first `samples` rows that are not empty, after a seeded shuffle of files and of BUFFER rows at a time.

    Raises CorpusError when the dataset is missing, gated, out of reach, or has no column that is recognised.
    """
    if spec.path.is_dir() and (special := special_inside(spec.path)):
        raise CorpusError(
            f"is {special[1]}, not a file", where=str(special[0]), hint="remove it from the dataset's folder"
        )
    revision = _commit(spec) if spec.hub else None
    rows: list[CorpusRow] = []
    contents: list[Normalized] = []
    empty = 0
    with _explained(spec):
        dataset = _split(spec, _load(spec, revision))
        names = dataset.column_names or list(next(iter(dataset), {}))
        check_columns(names, spec.column, where=str(spec), how=SYNTAX)
        shuffled = dataset.select_columns(columns(names, spec.column)).shuffle(seed=seed, buffer_size=BUFFER)
        for number, raw in enumerate(shuffled, start=1):
            where = f"{spec}: row {number} of the stream"
            content = normalize(_lenient(raw), spec.column, where=where, how=SYNTAX)
            if content.empty:
                empty += 1
                continue
            contents.append(content)
            rows.append(parse_row(content.fields, where=where, hint=f"choose a column of text or of chats: {SYNTAX}"))
            if len(rows) == samples:
                break
    notes = made_of(contents)
    notes += [f"{empty} empty rows of the dataset were passed over"] if empty else []
    notes += unread_images(names, spec.column)
    return Read(name=spec.place if spec.hub else spec.path.resolve().name, revision=revision, rows=rows, notes=notes)


def unread_images(names: Sequence[str], column: str | None) -> list[str]:
    """A note where a table has a column of images, which are not read."""
    unread = [name for name in ("image", "images") if name in names and name != column]
    return [f"column {name} of the dataset was not read: images come from .jsonl files only" for name in unread[:1]]


def _load(spec: Spec, revision: str | None) -> Mapping[str, Any]:
    """Split name → rows, none of them read yet."""
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # what goes wrong is reported once, by us
    place = spec.place if spec.hub else str(spec.path)
    splits = datasets.load_dataset(place, name=spec.config, revision=revision, streaming=True)
    assert isinstance(splits, Mapping)  # no split was asked for
    return splits


def _split(spec: Spec, splits: Mapping[str, Any]) -> Any:
    """The split asked for; else the only one, or `train`."""
    name = spec.split or (next(iter(splits)) if len(splits) == 1 else "train")
    if name not in splits:
        raise CorpusError(
            f"no split {name}; it has: {', '.join(splits)}", where=str(spec), hint=f"choose one of them: {SYNTAX}"
        )
    return splits[name]


def _lenient(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what others' columns say under our names: domains that are no names, splits unlike ours."""
    unusable = {
        "domain": not isinstance(row.get("domain"), str | int | float),
        "split": row.get("split") not in SPLITS,
    }
    return {key: None if unusable.get(key) else value for key, value in row.items()}


def _commit(spec: Spec) -> str:
    """The commit that a Hub dataset's revision names now. Raises CorpusError when it cannot be had."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    with _explained(spec):
        try:
            repository = HfApi().dataset_info(spec.place, revision=spec.revision)
        except RevisionNotFoundError as error:
            raise CorpusError(
                f"the dataset has no revision {spec.revision}", where=str(spec), hint="give a branch, tag or commit"
            ) from error
    return str(repository.sha)


@contextlib.contextmanager
def _explained(spec: Spec) -> Iterator[None]:
    """Turn whatever the Hub or `datasets` raises into one line that says what to do."""
    import httpx
    import pyarrow
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        yield
    except CorpusError:
        raise
    except (
        DatasetsError,
        HFValidationError,
        HfHubHTTPError,
        httpx.HTTPError,
        pyarrow.ArrowException,
        OSError,
        ValueError,
        RuntimeError,
        StopIteration,
    ) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if isinstance(error, StopIteration):
            message, hint = "a file of the dataset is empty", "check it"
        elif isinstance(error, GatedRepoError) or "gated" in str(error):
            message, hint = "the dataset is gated", "accept its terms on the Hub, then log in with `hf auth login`"
        elif isinstance(error, RepositoryNotFoundError | DatasetNotFoundError):
            message = "no such dataset on the Hub, and no such file or folder here"
            hint = "check the id; a private dataset needs `hf auth login`"
        elif isinstance(error, ConnectionError | TimeoutError | httpx.TransportError):
            message = f"the Hub cannot be reached ({type(error).__name__})"
            hint = "connect, or give a file or a folder with the dataset; if one was meant, it does not exist"
        elif "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            message, hint = f"which configuration? {' '.join(str(error).split())[:300]}", f"choose one: {SYNTAX}"
        else:
            message, hint = f"dataset cannot be streamed: {reason}", f"check it, or choose another part of it: {SYNTAX}"
        raise CorpusError(message, where=str(spec), hint=hint) from error
