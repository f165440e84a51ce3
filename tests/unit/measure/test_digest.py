"""A profile's digest follows every number in it, and neither names, times nor what redaction takes out."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantaudit.card.redact import redact
from quantaudit.measure.profile import Profile, load_profile, merge, save_profile
from quantaudit.measure.run import measure
from quantaudit.measure.shard import Shard


def test_it_is_that_of_the_file(tiny_profile: Profile, tmp_path: Path) -> None:
    save_profile(tiny_profile, tmp_path / "p.safetensors")
    assert load_profile(tmp_path / "p.safetensors").digest == tiny_profile.digest


def test_a_redacted_copy_has_the_same(tiny_profile: Profile) -> None:
    assert redact(tiny_profile).digest == tiny_profile.digest


def test_merged_shards_have_that_of_the_whole_run(tiny_loaded: Any, tiny_corpus: Any, tiny_profile: Profile) -> None:
    halves = [measure(tiny_loaded, tiny_corpus, shard=Shard(index=index, count=2)) for index in (1, 2)]
    assert halves[0].digest != halves[1].digest
    assert merge(*halves).digest == tiny_profile.digest


def numbers(value: Any, path: tuple[str, ...] = ()) -> Any:
    """Path of every array and number below a record."""
    for field in fields(value):
        part = getattr(value, field.name)
        if is_dataclass(part):
            yield from numbers(part, (*path, field.name))
        elif isinstance(part, np.ndarray | int):
            yield (*path, field.name)


def changed(value: Any, path: tuple[str, ...]) -> Any:
    part = getattr(value, path[0])
    if len(path) > 1:
        new = changed(part, path[1:])
    elif isinstance(part, int):
        new = part + 1
    else:
        new = part.copy()
        new[-1] += np.asarray(1, new.dtype)
    return replace(value, **{path[0]: new})


def test_every_number_counts_but_the_tokens_that_redaction_takes_out(tiny_profile: Profile) -> None:
    key = ("layers.0.mlp.down_proj.input", "calibration")
    value = tiny_profile.statistics[key]
    same = set()
    for path in numbers(value):
        other = replace(tiny_profile, statistics={**tiny_profile.statistics, key: changed(value, path)})
        if other.digest == tiny_profile.digest:
            same.add(path)
    assert same == {("peaks", "token"), ("peaks", "position")}


def test_names_places_and_versions_do_not_count_and_the_run_does(tiny_profile: Profile) -> None:
    def digest(part: str, **values: Any) -> str:
        record = getattr(tiny_profile.provenance, part).model_copy(update=values)
        return replace(tiny_profile, provenance=tiny_profile.provenance.model_copy(update={part: record})).digest

    same = [
        digest("model", spec="elsewhere", name="other"),
        digest("corpus", spec="elsewhere", name="other", revision="1"),
        digest("environment", timings={"x": 1.0}, packages={}, python="4", platform="?"),
    ]
    assert set(same) == {tiny_profile.digest}
    others = [
        digest("model", fingerprint="0"),
        digest("model", config_sha256="0"),
        digest("model", inputs=None),
        digest("model", dtype="float16"),
        digest("corpus", sha256="0"),
        digest("corpus", seed=9),
        digest("corpus", special_tokens="none"),
        digest("environment", arithmetic="float32"),
        digest("environment", attention="other"),
        digest("environment", batch_size=9),
    ]
    assert tiny_profile.digest not in others
    assert len(set(others)) == len(others)
