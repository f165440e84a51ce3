"""Datasets are streamed: some rows in a seeded order, from folders here and the Hub, whose failures are reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import httpx
import huggingface_hub
import pyarrow as pa
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
from pyarrow import parquet

from quantaudit.corpus import stream
from quantaudit.corpus.load import load_corpus
from quantaudit.corpus.spec import Spec, parse, pinned
from quantaudit.errors import CorpusError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` pauses for five seconds after each stream of Parquet, against a crash at the interpreter's exit."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of Parquet files: `train` of sixty rows in three files, `test` of five."""
    built = tmp_path / "set"
    built.mkdir()
    for part in range(3):
        names = [f"row {20 * part + i}" for i in range(20)]
        table = {"text": names, "domain": [i % 2 for i in range(20)], "split": ["train"] * 20, "body": names}
        parquet.write_table(pa.table(table), built / f"train-{part}.parquet")
    table = {"text": list("abcde"), "domain": [0] * 5, "split": ["test"] * 5, "body": list("fghij")}
    parquet.write_table(pa.table(table), built / "test-0.parquet")
    return built


def texts(spec: Any, **options: Any) -> list[str | None]:
    return [row.text for row in load_corpus(str(spec), **options).rows]


def jsonl_folder(folder: Path, *rows: Any) -> Path:
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# What a spec says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Spec(place="org/name")),
        ("org/name:cfg", Spec(place="org/name", config="cfg")),
        ("org/name:cfg:test", Spec(place="org/name", config="cfg", split="test")),
        ("org/name::test", Spec(place="org/name", split="test")),
        ("org/name:::body", Spec(place="org/name", column="body")),
        ("org/name@refs/pr/1:cfg", Spec(place="org/name", revision="refs/pr/1", config="cfg")),
        ("./data:cfg:test:body", Spec(place="./data", config="cfg", split="test", column="body")),
        ("my@file.jsonl", Spec(place="my@file.jsonl")),
        ("C:\\texts\\a.jsonl", Spec(place="C:\\texts\\a.jsonl")),
    ],
)
def test_a_spec_is_read_part_by_part(text: str, expected: Spec) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


def test_a_file_with_colons_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a:b:c.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert texts(path) == ["one", "two"]


def test_a_hub_dataset_is_pinned_to_the_commit_that_was_read(tmp_path: Path) -> None:
    assert pinned("org/name:cfg:test", COMMIT) == f"org/name@{COMMIT}:cfg:test"
    assert pinned("org/name@main", COMMIT) == f"org/name@{COMMIT}"
    assert pinned("builtin", None) == "builtin"
    assert pinned(str(tmp_path), None) == str(tmp_path)


# Folders, through the real library -----------------------------------------------------------------------------------


def test_the_first_samples_after_a_seeded_shuffle_are_read(folder: Path) -> None:
    first = texts(folder, samples=10, seed=0)
    assert first == texts(folder, samples=10, seed=0)
    assert len(set(first)) == 10
    assert set(first) <= {f"row {i}" for i in range(60)}
    assert first != sorted(first, key=lambda text: int(str(text).split()[1]))
    assert first != texts(folder, samples=10, seed=1)


def test_no_more_is_read_than_the_samples_and_the_shuffle_take(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BUFFER", 4)
    seen: list[Any] = []

    def rows() -> Any:
        for i in range(1000):
            seen.append(i)
            yield {"text": f"row {i}"}

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: {"train": datasets.IterableDataset.from_generator(rows)}
    )
    assert len(texts(folder, samples=10)) == 10
    assert len(seen) <= 16  # one for the columns, four in the buffer, ten read, one ahead


def test_a_dataset_smaller_than_asked_for_is_read_whole(folder: Path) -> None:
    assert sorted(map(str, texts(f"{folder}::test", samples=100))) == list("abcde")


def test_five_hundred_and_twelve_samples_are_the_default(tmp_path: Path) -> None:
    built = jsonl_folder(tmp_path / "set", *({"text": f"row {i}"} for i in range(600)))
    assert len(texts(built)) == stream.SAMPLES == 512


def test_domains_may_be_numbers_and_others_splits_say_nothing(folder: Path) -> None:
    rows = load_corpus(str(folder), samples=60).rows
    assert {row.domain for row in rows} == {"0", "1"}
    assert {row.split for row in rows} == {None}


def test_a_category_is_a_domain_where_there_is_no_other(tmp_path: Path) -> None:
    """As in the set of arXiv 2605.15572: token ids, and a category."""
    built = jsonl_folder(tmp_path / "a", *({"input_ids": [i, 1], "category": "math"} for i in range(3)))
    assert {row.domain for row in load_corpus(str(built)).rows} == {"math"}
    built = jsonl_folder(tmp_path / "b", *({"text": f"{i}", "category": "math", "domain": "law"} for i in range(3)))
    assert {row.domain for row in load_corpus(str(built)).rows} == {"law"}


def test_our_own_splits_are_kept(tmp_path: Path) -> None:
    built = jsonl_folder(tmp_path / "set", *({"text": s, "split": s} for s in ("calibration", "evaluation")))
    assert all(row.split == row.text for row in load_corpus(str(built)).rows)


def test_the_digest_is_of_what_was_read(folder: Path, tmp_path: Path) -> None:
    corpus = load_corpus(str(folder), samples=7)
    path = tmp_path / "copy.jsonl"
    path.write_text("".join(json.dumps({"text": r.text, "domain": r.domain}) + "\n" for r in corpus.rows))
    assert load_corpus(str(path)).sha256 == corpus.sha256
    assert load_corpus(str(folder), samples=8).sha256 != corpus.sha256
    assert (corpus.name, corpus.revision) == ("set", None)


@pytest.mark.parametrize(
    ("column", "expected"), [("body", {"text": "one"}), ("talk", {"messages": CHAT}), ("codes", {"input_ids": [3, 1]})]
)
def test_another_column_is_taken_for_what_it_holds(tmp_path: Path, column: str, expected: dict[str, Any]) -> None:
    row = {"text": "not this", "body": "one", "talk": CHAT, "codes": [3, 1]}
    built = jsonl_folder(tmp_path / "set", row, row)
    actual = load_corpus(f"{built}:::{column}").rows[0].model_dump(exclude_none=True, exclude={"domain"})
    assert actual == expected


def test_fields_that_a_table_fills_with_nulls_are_left_out(tmp_path: Path) -> None:
    turns = pa.array([[{"role": "user", "content": "hi", "tool_calls": None}]] * 2)
    built = tmp_path / "set"
    built.mkdir()
    table = pa.table({"messages": turns, "text": pa.array([None, None], pa.string())})
    parquet.write_table(table, built / "train.parquet")
    for spec in (built, built / "train.parquet"):
        (message,) = load_corpus(str(spec)).rows[0].messages or []
        assert message.model_dump() == {"role": "user", "content": "hi"}


def test_empty_rows_are_passed_over_and_noted(tmp_path: Path) -> None:
    built = jsonl_folder(tmp_path / "set", *({"text": text} for text in ("", "a", " \n", "b", "c")))
    corpus = load_corpus(str(built))
    assert sorted(str(row.text) for row in corpus.rows) == ["a", "b", "c"]
    assert corpus.notes == ("2 empty rows of the dataset were passed over",)


def test_images_of_a_dataset_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    built = jsonl_folder(tmp_path / "both", *[{"text": "a", "image": "a.png"}] * 2)
    corpus = load_corpus(str(built))
    assert corpus.rows[0].pictures is None
    assert corpus.notes == ("column image of the dataset was not read: images come from .jsonl files only",)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}
    built = jsonl_folder(tmp_path / "inside", *[{"messages": [turn]}] * 2)
    with pytest.raises(CorpusError, match=r"read from \.jsonl files only"):
        load_corpus(str(built))


def test_a_column_of_a_file_can_be_chosen_too(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"body": ["one", "two"], "text": ["x", "y"]}), tmp_path / "c.parquet")
    (tmp_path / "c.jsonl").write_text('{"body": "one", "text": "x"}\n{"body": "two"}\n')
    for name in ("c.parquet", "c.jsonl"):
        assert texts(f"{tmp_path / name}:::body") == ["one", "two"]


# What is wrong with a dataset ----------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, str]] = {
    "a split that is not there": ("{}::validation", r"no split validation; it has: (test, train|train, test)"),
    "a column that is not there": ("{}:::words", "no column words; it has: text, domain, split, body"),
    "a column of numbers": ("{}:::domain", "column domain holds int, not text, messages or token ids"),
    "a configuration that is not there": ("{}:de", "which configuration.*'de' not found. Available: .'default'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_part_that_a_dataset_lacks_is_named_with_what_it_has(folder: Path, case: str) -> None:
    spec, message = WRONG[case]
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(spec.format(folder))
    assert str(folder) in (caught.value.where or "")
    assert "column" in (caught.value.hint or "").lower()


def test_columns_that_are_not_recognised_are_named(tmp_path: Path) -> None:
    built = jsonl_folder(tmp_path / "set", {"headline": "a", "story": "b"}, {"headline": "c", "story": "d"})
    with pytest.raises(CorpusError, match="no column text, messages or input_ids; it has: headline, story") as caught:
        load_corpus(str(built))
    assert "ORG/NAME[@REVISION][:CONFIG[:SPLIT[:COLUMN]]]" in (caught.value.hint or "")
    parquet.write_table(pa.table({"headline": ["a"], "story": ["b"]}), tmp_path / "c.parquet")
    with pytest.raises(CorpusError, match="it has: headline, story"):
        load_corpus(str(tmp_path / "c.parquet"))


def test_several_splits_without_train_have_to_be_chosen_from(tmp_path: Path) -> None:
    built = tmp_path / "set"
    built.mkdir()
    for name in ("validation", "test"):
        (built / f"{name}.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(CorpusError, match="no split train; it has: "):
        load_corpus(str(built))


def test_rows_of_two_contents_are_refused_with_the_choice(tmp_path: Path) -> None:
    built = jsonl_folder(tmp_path / "set", *[{"text": "a", "messages": CHAT}] * 2)
    with pytest.raises(CorpusError, match="it has text and messages") as caught:
        load_corpus(str(built))
    assert "COLUMN" in (caught.value.hint or "")
    assert texts(f"{built}:::text") == ["a", "a"]


@pytest.mark.parametrize("content", ["{", "not json\n", ""])
def test_a_broken_file_of_a_dataset_is_one_error(tmp_path: Path, content: str) -> None:
    built = tmp_path / "set"
    built.mkdir()
    (built / "train.jsonl").write_text(content)
    with pytest.raises(CorpusError) as caught:
        load_corpus(str(built))
    assert "\n" not in caught.value.message


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(CorpusError, match="neither configurations nor splits") as caught:
        load_corpus(f"{path}::train")
    assert f"{path}:::COLUMN" in (caught.value.hint or "")


# The Hub, without a network ------------------------------------------------------------------------------------------

Hub = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Hub:
    """Puts a pretended Hub in place, which fails where it should; returns what it is asked for."""
    real = datasets.load_dataset

    def arrange(info: Exception | None = None, load: Exception | None = None) -> list[tuple[Any, ...]]:
        asked: list[tuple[Any, ...]] = []

        def dataset_info(_self: Any, place: str, *, revision: str | None = None) -> Any:
            asked.append(("info", place, revision))
            if info is not None:
                raise info
            return SimpleNamespace(sha=COMMIT)

        def load_dataset(place: str, *, name: Any, revision: Any, streaming: bool) -> Any:
            asked.append(("load", place, name, revision, streaming))
            if load is not None:
                raise load
            return real(str(folder), streaming=streaming)

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return arrange


def test_a_hub_dataset_is_streamed_at_the_commit_that_its_revision_names(hub: Hub) -> None:
    asked = hub()
    corpus = load_corpus("org/name@main:cfg:test", samples=5)
    assert asked == [("info", "org/name", "main"), ("load", "org/name", "cfg", COMMIT, True)]
    assert (corpus.spec, corpus.name, corpus.revision) == ("org/name@main:cfg:test", "org/name", COMMIT)
    assert sorted(str(row.text) for row in corpus.rows) == list("abcde")


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/api"))


FAILURES: dict[str, tuple[Exception | None, Exception | None, str, str]] = {
    "offline": (OfflineModeIsEnabled("offline"), None, "cannot be reached", "connect"),
    "no network": (httpx.ConnectError("no route"), None, "cannot be reached", "connect"),
    "too slow": (httpx.ReadTimeout("slow"), None, "cannot be reached", "connect"),
    "not found": (RepositoryNotFoundError("404", response=answer(404)), None, "no such dataset", "check the id"),
    "not found later": (None, DatasetNotFoundError("Dataset 'org/name' doesn't exist"), "no such dataset", "check"),
    "gated": (GatedRepoError("403", response=answer(403)), None, "gated", "hf auth login"),
    "gated later": (None, DatasetNotFoundError("Dataset 'org/name' is a gated dataset"), "gated", "hf auth login"),
    "no such revision": (RevisionNotFoundError("404", response=answer(404)), None, "no revision v9", "commit"),
    "a script": (None, RuntimeError("Dataset scripts are no longer supported, but found x.py"), "scripts", "check"),
    "a missing configuration": (
        None,
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'de']"),
        "which configuration.*'en', 'de'",
        "CONFIG",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_of_the_hub_is_one_line_with_a_remedy(hub: Hub, case: str) -> None:
    info, load, message, hint = FAILURES[case]
    hub(info, load)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus("org/name@v9")
    assert caught.value.where == "org/name@v9"
    assert hint in (caught.value.hint or "")
    assert "\n" not in caught.value.message


def test_offline_as_it_is_here_is_such_a_failure() -> None:
    with pytest.raises(CorpusError, match="cannot be reached"):
        load_corpus("org/name")


@pytest.mark.parametrize("spec", ["texts.jsonl", "data/texts.jsonl", "data/texts.parquet", "nothing", "./x", "/a/b"])
def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(hub: Hub, spec: str) -> None:
    asked = hub()
    with pytest.raises(CorpusError, match="no such corpus file"):
        load_corpus(spec)
    assert asked == []
