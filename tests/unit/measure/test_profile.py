"""A profile survives its file bit for bit, merges like its parts, and is refused when it is not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from quantaudit.errors import FormatError, UsageError
from quantaudit.measure.profile import FORMAT_VERSION, Profile, load_profile, merge, save_profile
from quantaudit.measure.shard import Shard, parse_shard
from quantaudit.provenance import SPLITS, SampleInfo, ShardsInfo, Split, Unmeasured
from quantaudit.stats import site
from tests.builders import Sample, accumulate, differences, make_samples, provenance, site_info
from tests.unit.stats.strategies import sample_lists

SAMPLES = [
    SampleInfo(id=f"s{i}", domain="d", split="calibration" if i % 2 else "evaluation", tokens=3) for i in range(6)
]


def profile_of(samples: list[Sample], names: tuple[str, ...] = ("layers.0.mlp.down_proj.input",)) -> Profile:
    """The same tensors at every named site, split by the samples' own splits."""
    statistics: dict[tuple[str, Split], Any] = {}
    for split in SPLITS:
        own = [s for s in samples if SAMPLES[s[0]].split == split]
        if own:
            statistics |= {(name, split): accumulate(own) for name in names}
    return Profile(provenance=provenance([site_info(name) for name in names], SAMPLES), statistics=statistics)


def normal(count: int = 6, width: int = 4, dtype: torch.dtype = torch.bfloat16) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return make_samples([torch.randn(3, width, generator=generator).to(dtype) for _ in range(count)])


def saved(profile: Profile, path: Path) -> bytes:
    save_profile(profile, path)
    return path.read_bytes()


@given(samples=sample_lists(), name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_loading_what_was_saved_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], name: str
) -> None:
    profile = profile_of(samples, names=(name, "lm_head.input"))
    path = tmp_path_factory.mktemp("profile") / "p.safetensors"
    save_profile(profile, path)
    loaded = load_profile(path)
    assert loaded.provenance == profile.provenance
    assert loaded.statistics.keys() == profile.statistics.keys()
    assert [differences(loaded.statistics[key], value) for key, value in profile.statistics.items()] == [
        [] for _ in profile.statistics
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_same_profile_gives_the_same_bytes_saved_twice_or_after_loading(tmp_path: Path, dtype: torch.dtype) -> None:
    names = tuple(f"layers.{i}.output" for i in range(12))
    profile = profile_of(normal(dtype=dtype), names)
    first = saved(profile, tmp_path / "a.safetensors")
    assert saved(profile, tmp_path / "b.safetensors") == first
    assert saved(load_profile(tmp_path / "a.safetensors"), tmp_path / "c.safetensors") == first


def test_the_order_of_the_statistics_does_not_show_in_the_bytes(tmp_path: Path) -> None:
    profile = profile_of(normal(), ("a", "b", "c"))
    backwards = Profile(provenance=profile.provenance, statistics=dict(reversed(profile.statistics.items())))
    assert saved(backwards, tmp_path / "a") == saved(profile, tmp_path / "b")


def test_the_file_is_plain_safetensors_with_one_metadata_key(tmp_path: Path) -> None:
    save_profile(profile_of(normal()), tmp_path / "p.safetensors")
    with safe_open(tmp_path / "p.safetensors", framework="numpy") as file:
        assert list(file.metadata()) == ["quantaudit"]
        metadata = json.loads(file.metadata()["quantaudit"])
        counts = file.get_tensor("layers.0.mlp.down_proj.input/calibration/counts")
    assert metadata["format_version"] == FORMAT_VERSION
    assert counts.dtype == np.min_scalar_type(int(counts.max()))
    assert (counts > 0).all()


# Shards --------------------------------------------------------------------------------------------------------------


@given(samples=sample_lists(), owner=st.lists(st.integers(0, 2), min_size=5, max_size=5))
@settings(max_examples=20)
def test_merged_shards_of_samples_give_the_bytes_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], owner: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    shards = [profile_of([s for s, o in zip(samples, owner, strict=False) if o == k]) for k in range(3)]
    a, b, c = shards
    whole = saved(profile_of(samples), folder / "whole")
    assert saved(merge(merge(a, b), c), folder / "left") == whole
    assert saved(merge(a, merge(b, c)), folder / "right") == whole
    assert saved(merge(merge(c, a), b), folder / "other") == whole


def test_token_texts_of_all_shards_are_kept() -> None:
    a, b = profile_of(normal(2)), profile_of(normal(2))
    a = Profile(provenance=a.provenance.model_copy(update={"token_text": {7: "x", 3: "y"}}), statistics=a.statistics)
    b = Profile(provenance=b.provenance.model_copy(update={"token_text": {5: "z", 3: "y"}}), statistics={})
    assert list(merge(a, b).provenance.token_text.items()) == [(3, "y"), (5, "z"), (7, "x")]
    assert merge(a, b).provenance == merge(b, a).provenance


def test_padded_samples_of_all_shards_are_kept_in_their_order() -> None:
    base = profile_of(normal(2)).provenance
    a, b = (
        Profile(
            provenance=base.model_copy(update={"corpus": base.corpus.model_copy(update={"padded": ids})}), statistics={}
        )
        for ids in (["s4"], ["s1", "s4"])
    )
    assert merge(a, b).provenance.corpus.padded == merge(b, a).provenance.corpus.padded == ["s1", "s4"]


def test_only_what_no_shard_measured_stays_unmeasured() -> None:
    silent = [Unmeasured(module=name, reason="never ran in the forward pass") for name in ("x", "y", "z")]
    a, b = (
        Profile(provenance=provenance([site_info("s")], SAMPLES, unmeasured=rows), statistics={})
        for rows in (silent[:2], silent[1:])
    )
    assert merge(a, b).provenance.unmeasured == merge(b, a).provenance.unmeasured == [silent[1]]


@pytest.mark.parametrize("part", ["model", "samples", "sites"])
def test_shards_of_different_runs_are_refused(part: str) -> None:
    a = profile_of(normal())
    changed = {
        "model": a.provenance.model.model_copy(update={"fingerprint": "other"}),
        "samples": SAMPLES[:-1],
        "sites": [site_info("elsewhere")],
    }[part]
    b = Profile(provenance=a.provenance.model_copy(update={part: changed}), statistics=a.statistics)
    with pytest.raises(FormatError, match=f"differ in their {part}"):
        merge(a, b)


def test_every_linear_has_the_site_that_it_reads(tiny_profile: Profile) -> None:
    readers = {member: site for site in tiny_profile.sites for member in site.members}
    assert readers
    assert {member: tiny_profile.input_site(member) for member in readers} == readers
    assert tiny_profile.input_site("model.norm") is None


def test_an_expert_s_linear_reads_its_own_tokens_and_not_its_layer_s() -> None:
    layer = site_info("layers.0.experts.up_proj.input", members=["e.0.up", "e.1.up"])
    own = [site_info(f"layers.0.experts.{i}.up_proj.input", kind="expert_input", members=[f"e.{i}.up"]) for i in (0, 1)]
    profile = Profile(provenance=provenance([*own, layer], SAMPLES), statistics={})
    assert [profile.input_site(f"e.{i}.up") for i in (0, 1)] == own


def test_the_whole_of_a_site_is_merged_once(tiny_profile: Profile) -> None:
    assert tiny_profile.whole("embedding") is tiny_profile.whole("embedding")
    assert tiny_profile.whole("nowhere") is None


def test_the_whole_of_a_site_is_both_splits_together() -> None:
    samples = normal()
    profile = profile_of(samples)
    name = profile.sites[0].name
    whole = profile.whole(name)
    assert whole is not None
    assert differences(whole, accumulate(samples)) == []
    assert profile.whole("nowhere") is None
    assert profile.split("nowhere", "calibration") is None


def test_a_site_seen_in_one_split_only_is_whole_with_that_split() -> None:
    only = [s for s in normal() if SAMPLES[s[0]].split == "evaluation"]
    profile = profile_of(only)
    whole = profile.whole(profile.sites[0].name)
    assert whole is not None
    assert differences(whole, accumulate(only)) == []
    assert profile.split(profile.sites[0].name, "calibration") is None


# Files that are not profiles -----------------------------------------------------------------------------------------


def with_array(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change an array of a saved profile, by its name without the site."""

    def rewrite(path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            metadata, arrays = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        change(arrays)
        save_file(arrays, path, metadata=metadata)

    return rewrite


def with_metadata(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrite the metadata of a saved profile, keeping its arrays."""

    def rewrite(path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads(file.metadata()["quantaudit"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        changed = change(metadata)
        save_file(arrays, path, metadata={"quantaudit": json.dumps(metadata if changed is None else changed)})

    return rewrite


BREAKAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "cut in the arrays": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "text": lambda path: path.write_text("not a profile at all"),
    "another safetensors file": lambda path: save_file({"weight": np.ones(3)}, path),
    "no JSON": lambda path: save_file({"w": np.ones(3)}, path, metadata={"quantaudit": "{"}),
    "a JSON list": with_metadata(lambda metadata: [metadata]),
    "no version": with_metadata(lambda metadata: {k: v for k, v in metadata.items() if k != "format_version"}),
    "a newer version": with_metadata(lambda metadata: metadata.update(format_version=FORMAT_VERSION + 1)),
    "no provenance": with_metadata(lambda metadata: {k: v for k, v in metadata.items() if k != "provenance"}),
    "half a provenance": with_metadata(lambda metadata: metadata["provenance"].pop("model") and None),
    "a provenance with unknown parts": with_metadata(lambda metadata: metadata["provenance"].update(mystery=1)),
    "a site without arrays": with_metadata(
        lambda metadata: metadata["encodings"].update({"x/calibration/": "float16"})
    ),
    "an unknown split": with_metadata(lambda metadata: metadata["encodings"].update({"x/test/": "float16"})),
    "a key without a split": with_metadata(lambda metadata: metadata["encodings"].update({"x": "float16"})),
    "an unknown encoding": with_metadata(
        lambda metadata: metadata["encodings"].update(dict.fromkeys(metadata["encodings"], "int4"))
    ),
    "an array without an axis": with_array(
        lambda arrays: arrays.update({key: np.asarray(3) for key in arrays if key.endswith("/massive")})
    ),
    "an array with two axes": with_array(
        lambda arrays: arrays.update({key: arrays[key][None] for key in arrays if key.endswith("/counts")})
    ),
    "encodings as a list": with_metadata(lambda metadata: metadata.update(encodings=["bfloat16"])),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_file_that_is_not_a_whole_profile_is_refused_by_name(tmp_path: Path, breakage: str) -> None:
    path = tmp_path / "p.safetensors"
    save_profile(profile_of(normal()), path)
    BREAKAGES[breakage](path)
    with pytest.raises(FormatError) as caught:
        load_profile(path)
    assert caught.value.where == str(path)
    assert caught.value.hint


def test_a_version_mismatch_names_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_profile(profile_of(normal()), path)
    BREAKAGES["a newer version"](path)
    with pytest.raises(FormatError, match=rf"format {FORMAT_VERSION + 1}.* reads {FORMAT_VERSION}"):
        load_profile(path)


def test_weights_are_not_taken_for_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path, metadata={"format": "pt"})
    with pytest.raises(FormatError, match="a safetensors file, and no profile") as caught:
        load_profile(path)
    assert "quantaudit measure" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("breakage", "reason"),
    [
        ("an unknown split", "unknown split 'test'"),
        ("an unknown encoding", "unknown encoding 'int4'"),
        ("a site without arrays", "it lacks 'x/calibration/patterns'"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(tmp_path: Path, breakage: str, reason: str) -> None:
    path = tmp_path / "p.safetensors"
    save_profile(profile_of(normal()), path)
    BREAKAGES[breakage](path)
    with pytest.raises(FormatError, match=f"not a readable profile: {reason}"):
        load_profile(path)


def test_a_missing_profile_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="quantaudit measure"):
        load_profile(tmp_path / "none.safetensors")


def test_an_empty_site_survives_the_file(tmp_path: Path) -> None:
    built = Profile(
        provenance=provenance([site_info("s")], SAMPLES), statistics={("s", "calibration"): site.zero("float16")}
    )
    save_profile(built, tmp_path / "p")
    actual = load_profile(tmp_path / "p").split("s", "calibration")
    assert actual is not None
    assert differences(actual, site.zero("float16")) == []


def test_shards_that_share_a_sample_are_refused() -> None:
    shard = profile_of(normal(2))
    with pytest.raises(FormatError, match="samples are in both profiles"):
        merge(shard, shard)


def test_shards_of_different_attention_implementations_are_refused() -> None:
    a = profile_of(normal(2))
    environment = a.provenance.environment.model_copy(update={"attention": "another"})
    b = Profile(provenance=a.provenance.model_copy(update={"environment": environment}), statistics={})
    with pytest.raises(FormatError, match="attention implementations"):
        merge(a, b)


# Parts of a run that say which they are ------------------------------------------------------------------------------


def part_of(held: list[int], count: int, samples: list[Sample]) -> Profile:
    built = profile_of(samples)
    shards = ShardsInfo(count=count, held=held)
    return Profile(provenance=built.provenance.model_copy(update={"shards": shards}), statistics=built.statistics)


def test_some_shards_say_which_they_are_and_are_read_by_merge_alone(tmp_path: Path) -> None:
    samples = normal()
    parts = [part_of([k + 1], 3, samples[k::3]) for k in range(3)]
    some = merge(parts[2], parts[0])
    assert some.provenance.shards == ShardsInfo(count=3, held=[1, 3])
    save_profile(some, tmp_path / "some")
    with pytest.raises(FormatError, match="holds shards 1, 3 of 3 only") as caught:
        load_profile(tmp_path / "some")
    assert "shard 2" in (caught.value.hint or "")
    again = load_profile(tmp_path / "some", whole=False)
    assert merge(again, parts[1]).provenance.shards is None
    assert saved(merge(parts[1], again), tmp_path / "all") == saved(profile_of(samples), tmp_path / "whole")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (([1], 3), ([1], 3), "shard 1 of 3 is in both"),
        (([1, 2], 3), ([2, 3], 3), "shard 2 of 3 is in both"),
        (([1], 3), ([2], 4), "holds shard 1 of 3, the other shard 2 of 4"),
    ],
)
def test_shards_that_do_not_add_up_are_refused(
    a: tuple[list[int], int], b: tuple[list[int], int], message: str
) -> None:
    samples = normal()
    with pytest.raises(FormatError, match=message) as caught:
        merge(part_of(*a, samples[:2]), part_of(*b, samples[2:]))
    assert caught.value.hint


def test_a_whole_run_and_a_shard_do_not_add_up() -> None:
    with pytest.raises(FormatError, match="of the whole run, the other a shard") as caught:
        merge(profile_of(normal()[:2]), part_of([1], 2, normal()[2:]))
    assert "--shard" in (caught.value.hint or "")


def test_shards_of_other_text_are_refused() -> None:
    a = profile_of(normal()[:2])
    corpus = a.provenance.corpus.model_copy(update={"sha256": "other"})
    b = Profile(provenance=a.provenance.model_copy(update={"corpus": corpus}), statistics={})
    with pytest.raises(FormatError, match="differ in their text") as caught:
        merge(a, b)
    assert "--shard" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", "1.5/4", "99999999999999/4"])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_shard(text)
    assert "1/4" in (caught.value.hint or "")


def test_a_shard_is_which_and_of_how_many() -> None:
    assert parse_shard(" 2 / 4 ") == Shard(2, 4)
    assert [list(Shard(k, 3).deal(range(8))) for k in (1, 2, 3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
