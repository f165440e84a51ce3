"""What goes into the model, through the command line: datasets, special tokens, ids of another tokenizer, images."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
from pyarrow import parquet

from quantaudit import cli
from quantaudit.card.schema import load_card
from quantaudit.measure.profile import load_profile
from tests.builders import tiny_tokenizer
from tests.vision import save_corpus

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command line in a folder of its own: (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.0)

    def command(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["quantaudit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), " ".join(capsys.readouterr().err.split())

    return command


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"line number {i} of the corpus\n" for i in range(9)))
    return path


@pytest.fixture
def marked_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with a tokenizer that puts a start token before every text."""
    import shutil

    from tokenizers.processors import TemplateProcessing

    folder = Path(shutil.copytree(tiny_folder, tmp_path / "marked"))
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_profile_without_special_tokens_is_refused_where_they_are_added(
    run: Run, marked_folder: Path, texts: Path
) -> None:
    measure = ("measure", marked_folder, "--corpus", texts, "--out")
    assert run(*measure, "auto.safetensors")[0] == 0
    assert run(*measure, "none.safetensors", "--special-tokens", "none")[0] == 0
    auto, none = (load_profile(Path(f"{name}.safetensors")) for name in ("auto", "none"))
    assert (auto.provenance.corpus.special_tokens, none.provenance.corpus.special_tokens) == ("auto", "none")
    assert [a.tokens - b.tokens for a, b in zip(auto.samples, none.samples, strict=True)] == [1] * 9

    report = ("report", marked_folder, "--corpus", texts, "--score", "damage", "--evaluation-tokens", 64, "--out")
    code, err = run(*report, "card", "--profile", "none.safetensors")
    assert (code, "profile was measured with --special-tokens none add --special-tokens none" in err) == (2, True)
    code, err = run(*report, "card", "--profile", "auto.safetensors", "--special-tokens", "none")
    assert (code, "profile was measured with --special-tokens auto" in err) == (2, True)
    assert run(*report, "card", "--profile", "none.safetensors", "--special-tokens", "none")[0] == 0
    assert load_card(Path("card/card.json")).corpus.special_tokens == "none"

    simulate = ("simulate", marked_folder, "--profile", "none.safetensors", "--score", "damage", "--out")
    assert run(*simulate, "a.json", "--evaluation-tokens", 64)[0] == 0  # as the profile was measured
    code, err = run(*simulate, "b.json", "--special-tokens", "auto")
    assert (code, "--special-tokens none" in err) == (2, True)


def test_the_setting_is_refused_even_where_it_changes_no_token(run: Run, tiny_folder: Path, texts: Path) -> None:
    assert run("measure", tiny_folder, "--corpus", texts, "--out", "p.safetensors")[0] == 0
    code, err = run(
        "simulate", tiny_folder, "--profile", "p.safetensors", "--special-tokens", "none", "--out", "s.json"
    )
    assert (code, "--special-tokens auto" in err) == (2, True)


def test_any_other_setting_is_a_usage_error(run: Run, tiny_folder: Path) -> None:
    code, err = run("measure", tiny_folder, "--special-tokens", "some", "--out", "p.safetensors")
    assert (code, "'auto', 'none'" in err) == (2, True)


def test_a_dataset_folder_is_measured_and_simulated_from_the_same_rows(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    table = pa.table({"body": [f"row number {i} of the set" for i in range(40)], "domain": ["a", "b"] * 20})
    parquet.write_table(table, tmp_path / "set" / "train-0.parquet")
    spec = f"{tmp_path / 'set'}:::body"
    measure = ("measure", tiny_folder, "--corpus", spec, "--samples", 12, "--seed", 3, "--out")
    assert run(*measure, "a.safetensors")[0] == 0
    assert run(*measure, "b.safetensors")[0] == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    found = load_profile(Path("a.safetensors")).provenance.corpus
    assert (found.spec, found.name, found.samples, set(found.domains)) == (spec, "set", 12, {"a", "b"})
    simulate = ("simulate", tiny_folder, "--profile", "a.safetensors", "--score", "damage", "--evaluation-tokens", 64)
    assert run(*simulate, "--out", "s.json")[0] == 0


def test_a_profile_of_a_hub_dataset_is_simulated_at_the_commit_that_was_measured(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {"main": "a" * 40}
    asked: list[tuple[str, str | None]] = []
    real = datasets.load_dataset
    for name, commit in (("one", "a" * 40), ("two", "b" * 40)):
        (tmp_path / commit).mkdir()
        rows = [json.dumps({"text": f"row {i} of {name}"}) for i in range(9)]
        (tmp_path / commit / "test.jsonl").write_text("\n".join(rows))

    def dataset_info(_self: object, place: str, *, revision: str | None = None) -> SimpleNamespace:
        asked.append((place, revision))
        return SimpleNamespace(sha=commits.get(revision or "main", revision))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda place, *, name, revision, streaming: real(str(tmp_path / revision), streaming=streaming),
    )
    assert run("measure", tiny_folder, "--corpus", "org/name::test", "--out", "p.safetensors")[0] == 0
    assert load_profile(Path("p.safetensors")).provenance.corpus.revision == "a" * 40
    commits["main"] = "b" * 40  # the dataset moves on
    simulate = ("simulate", tiny_folder, "--profile", "p.safetensors", "--score", "damage", "--evaluation-tokens", 64)
    assert run(*simulate, "--out", "s.json")[0] == 0
    assert asked == [("org/name", None), ("org/name", "a" * 40)]
    report = ("report", tiny_folder, "--corpus", "org/name::test", "--profile", "p.safetensors", "--out", "card")
    code, err = run(*report)
    assert (code, "other text" in err, f"it was read at revision {'a' * 40}" in err) == (2, True, True)


def test_a_dataset_out_of_reach_is_one_error(run: Run, tiny_folder: Path) -> None:
    code, err = run("report", tiny_folder, "--corpus", "org/name:config:test", "--out", "card")
    assert code == 2
    assert err.startswith("error: org/name:config:test: the Hub cannot be reached")
    assert not Path("card").exists()


def test_ids_of_another_tokenizer_are_measured_as_text(
    run: Run, tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    """As the set of arXiv 2605.15572, whose ids are Llama 2's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    made = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    source = PreTrainedTokenizerFast(tokenizer_object=made)
    source.save_pretrained(tmp_path / "source")
    lines = texts.read_text().splitlines()
    rows = [{"input_ids": source.encode(line)} for line in lines]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--corpus", "ids.jsonl", "--corpus-tokenizer", tmp_path / "source")
    assert run("measure", tiny_folder, *given, "--out", "ids.safetensors")[0] == 0
    profile = load_profile(Path("ids.safetensors"))
    assert profile.provenance.corpus.tokenizer == str(tmp_path / "source")
    # One token a byte in both: the same lengths, in the same order, and the first peak is at a token of that very text.
    assert [sample.tokens for sample in profile.samples] == [len(line) for line in lines]
    peaks = profile.whole("embedding").peaks
    tokenizer = tiny_tokenizer()
    for sample, position, token in zip(peaks.sample, peaks.position, peaks.token, strict=True):
        assert tokenizer.decode([int(token)]) == lines[sample][position]
    simulate = ("simulate", tiny_folder, "--profile", "ids.safetensors", "--score", "damage", "--evaluation-tokens", 64)
    assert run(*simulate, "--out", "s.json")[0] == 0
    code, err = run("report", tiny_folder, *given[:2], "--profile", "ids.safetensors", "--out", "card")
    assert (code, "the same --corpus-tokenizer as when it was measured" in err) == (2, True)
    made.normalizer = normalizers.Lowercase()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path / "source")  # another one in its place
    code, err = run(*simulate, "--out", "s.json", "--force")
    assert (code, "the same --corpus-tokenizer as when it was measured" in err) == (2, True)
    code, err = run("measure", tiny_folder, *given[:2], "--corpus-tokenizer", "no/tokenizer", "--out", "x.safetensors")
    assert (code, "--corpus-tokenizer no/tokenizer: tokenizer cannot be loaded" in err) == (2, True)


def test_images_for_a_model_of_text_are_one_error(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    corpus = save_corpus(tmp_path / "pictures")
    code, err = run("report", tiny_folder, "--corpus", corpus, "--out", "card")
    assert (code, "the corpus has images, and this model takes none" in err) == (2, True)
    assert "loading" not in err
