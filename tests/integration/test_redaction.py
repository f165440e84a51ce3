"""A private corpus, marked, and every byte that a redacted report writes searched for its words, ids and names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quantaudit.card.schema import load_card
from quantaudit.card.sections.peak_locations import KIND_IDS
from quantaudit.measure.profile import load_profile
from tests.integration.test_cli import Quantaudit, main, quantaudit  # noqa: F401

MARKS = ("jellyfish", "kazoo", "wardroom", "oncology", "patient", "hospital")
TEXTS = [f"wardroom{i} keeps jellyfish , near kazoo{i} . until nightfall{i}" for i in range(9)]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens are whole words, with ids from 5,000 on that no other number of a card is."""
    folder = tmp_path_factory.mktemp("words")
    listed = sorted({word for text in TEXTS for word in text.split()})
    filler = [f"filler{i}" for i in range(5000)]
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*filler, *listed, *special])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=vocabulary["<pad>"],
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def private(tmp_path: Path) -> Path:
    path = tmp_path / "hospital-notes.jsonl"
    rows = [{"text": t, "id": f"patient-{i}", "domain": f"oncology-{i % 2}"} for i, t in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arrays(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def report(quantaudit: Quantaudit, words: Path, private: Path, out: Path, *more: Any) -> str:  # noqa: F811
    fast = ("--score", "damage", "--evaluation-tokens", 32)
    code, standard, errors = quantaudit("report", words, "--corpus", private, *fast, *more, "--out", out)
    assert code == 0, errors
    return standard + errors


def test_nothing_that_a_redacted_report_writes_tells_of_the_text(
    quantaudit: Quantaudit,  # noqa: F811
    words: Path,
    private: Path,
    tmp_path: Path,
) -> None:
    plain, hidden = tmp_path / "plain", tmp_path / "hidden"
    report(quantaudit, words, private, plain)
    said = report(quantaudit, words, private, hidden, "--redact-text")
    for mark in MARKS:
        assert any(mark.encode() in path.read_bytes() for path in files(plain)), f"{mark}: the search would find it"
        assert mark not in said
        assert [path.name for path in files(hidden) if mark.encode() in path.read_bytes()] == []

    ids = {token for token in load_profile(plain / "profile.safetensors").provenance.token_text if token >= 0}
    assert min(ids) >= 5000
    for path in sorted(hidden.glob("card.*")):
        numbers = {int(n) for n in re.findall(r"(?<![\w.])(\d{4})(?![\w.])", path.read_text())}
        assert not ids & numbers, path.name
    for key, array in arrays(hidden / "profile.safetensors").items():
        if key.rpartition("/")[2] in ("peak_token", "peak_position", "peak_sample", "sample"):
            assert not ids & set(array.reshape(-1).tolist()), key
        if key.endswith("peak_token"):
            assert set(array.tolist()) <= set(KIND_IDS.values())
        if key.endswith("peak_position"):
            assert set(array.tolist()) <= {0, 1}


def test_what_is_known_of_peaks_stays(quantaudit: Quantaudit, words: Path, private: Path, tmp_path: Path) -> None:  # noqa: F811
    plain, hidden = tmp_path / "plain", tmp_path / "hidden"
    report(quantaudit, words, private, plain)
    report(quantaudit, words, private, hidden, "--redact-text")
    a, b = load_card(plain / "card.json"), load_card(hidden / "card.json")
    for one, other in zip(a.sites, b.sites, strict=True):
        assert [(p.value, p.channel, p.median, p.token_kind) for p in one.peaks] == [
            (p.value, p.channel, p.median, p.token_kind) for p in other.peaks
        ]
        assert [p.position == 0 for p in one.peaks] == [p.position == 0 for p in other.peaks]
        assert {(p.token, p.token_id) for p in other.peaks} == {(None, None)}
        assert {p.position for p in other.peaks} <= {0, None}
    assert {p.token_kind for site in b.sites for p in site.peaks} <= set(KIND_IDS)
    assert a.places == b.places
    assert a.verdict.schemes == b.verdict.schemes or [row.status for row in a.verdict.schemes] == [
        row.status for row in b.verdict.schemes
    ]
    assert b.corpus.redacted
    assert sorted(b.corpus.domains) == ["domain-1", "domain-2"]
    assert a.corpus.sha256 == b.corpus.sha256
    assert (plain / "scales.safetensors").read_bytes() == (hidden / "scales.safetensors").read_bytes()


def test_commands_that_need_the_text_say_so_and_go_on_with_it(
    quantaudit: Quantaudit,  # noqa: F811
    words: Path,
    private: Path,
    tmp_path: Path,
) -> None:
    report(quantaudit, words, private, tmp_path / "card", "--redact-text")
    profile = tmp_path / "card" / "profile.safetensors"
    fast = ("--score", "damage", "--evaluation-tokens", 32, "--profile", profile)
    code, _, errors = quantaudit("simulate", words, *fast, "--out", tmp_path / "s.json")
    assert (code, "text is redacted" in errors, "--corpus" in errors) == (2, True, True)
    code, _, errors = quantaudit("simulate", words, *fast, "--corpus", private, "--out", tmp_path / "s.json")
    assert code == 0, errors
    report(quantaudit, words, private, tmp_path / "again", "--profile", profile)
    assert load_card(tmp_path / "again" / "card.json").corpus.redacted
    for path in files(tmp_path / "again"):
        assert not [mark for mark in MARKS if mark.encode() in path.read_bytes()], path
    measured = tmp_path / "m.safetensors"
    assert quantaudit("measure", words, "--corpus", private, "--out", measured)[0] == 0
    code, _, errors = quantaudit("merge", profile, measured, "--out", tmp_path / "both.safetensors")
    assert (code, "redacted" in errors) == (2, True)
