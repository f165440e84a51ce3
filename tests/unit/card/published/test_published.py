"""Stored statistics of the paper are read as they are, or refused; what the package ships is made from them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from quantaudit.card.published.records import DATA, PeakSite, find, published
from quantaudit.card.published.reference import looks_like_reference, read_reference
from quantaudit.errors import FormatError
from tests.stored_statistics import save, stored
from tools.published_peaks import collect, to_json


def test_what_is_shipped_is_small_and_names_its_source() -> None:
    assert DATA.stat().st_size < 64 << 10
    data = published()
    assert len(data.models) == 27
    assert sum(row.main for row in data.models) == 24
    assert "2605.15572" in data.source
    assert data.repository.endswith("clx1415926/Max_act_llm")
    assert len(data.revision) == 40
    assert find("QWEN3-8b") is find("Qwen3-8B") is not None


def test_the_tool_makes_what_is_shipped(tmp_path: Path) -> None:
    """From files of the reference repository's form, in its folders and in flat ones, gzipped and not."""
    data = published()
    for index, model in enumerate(data.models):
        save(tmp_path / f"family/json/{model.model}_top5_stats.json{'.gz' if index % 2 else ''}", stored(model))
    for row in data.subsets:
        model = find(row.model)
        assert model is not None
        part = model.model_copy(update={"samples": row.samples, "outside": {"final_norm": row.value}, "layers": {}})
        part = part.model_copy(update={"layers": {"hidden": [1.0]}, "top": [row.value]})
        name = f"{row.model}_top5_stats.json"
        flat = f"bootstrap-{row.samples}-r{row.repeat}-{name}"
        save(tmp_path / (flat if row.repeat else f"bootstrap/{row.samples}/r{row.repeat}/json/{name}"), stored(part))
    assert to_json(collect(tmp_path, data.revision)) == DATA.read_text(encoding="utf-8")


def test_a_file_is_read_with_signs_layers_and_ties(tmp_path: Path) -> None:
    model = find("gpt-oss-20b")
    assert model is not None
    read = read_reference(save(tmp_path / "x_top5_stats.json.gz", stored(model)))
    assert read == model.model_copy(update={"family": None, "main": False})
    assert read.largest() == PeakSite(component="mlp_output", layer=23, value=-145408.0)
    assert read.largest("hidden") == PeakSite(component="hidden", layer=23, value=-145408.0)
    assert [site.component for site in read.sites()][:2] == ["embedding", "attention_output"]


def _site(**changed: Any) -> dict[str, Any]:
    return {"topk_abs": [2.0], "topk_signed": [-2.0]} | changed


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"per_layer_stats": 1}, "no table"),
        ({"per_layer_stats": {"final_layernorm": _site(topk_abs=[3.0])}}, "not its largest"),
        (
            {"per_layer_stats": {"final_layernorm": _site(topk_abs=[2, 5], topk_signed=[2, 5])}},
            "not its largest",
        ),
        ({"per_layer_stats": {"final_layernorm": _site(topk_abs=[])}}, "0 magnitudes"),
        ({"per_layer_stats": {"final_layernorm": {}}}, "'topk_abs' is missing"),
        ({"per_layer_stats": {}}, "no finite peak"),
        ({"per_layer_stats": {"final_layernorm": _site(topk_signed=["x"])}}, "could not convert"),
        ({"per_layer_stats": {"final_layernorm": _site(topk_signed=[float("nan")])}}, "no finite peak"),
        ({"global_top5_abs": [7.0]}, "its global maximum is 7"),
        ({"num_samples": -5}, "samples"),
        ({"num_hidden_layers": 0}, "declared_layers"),
        ({"model_name": ["x"]}, "model"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changed: dict[str, Any], cause: str) -> None:
    model = find("Ling-mini-5T")
    assert model is not None
    path = save(tmp_path / "x.json", stored(model, **changed))
    with pytest.raises(FormatError, match=cause):
        read_reference(path)


def test_a_broken_file_is_one_error(tmp_path: Path) -> None:
    for name, data in {
        "cut.gz": gzip.compress(b'{"per_layer_stats": {}}' * 100)[:-9],
        "bomb.gz": gzip.compress(b" " * (65 << 20)),
        "no.json": b"{",
        "bytes.json": b"\xff\xfe",
        "deep.json": b"[" * 100_000,
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError):
            read_reference(tmp_path / name)
    assert not looks_like_reference(tmp_path / "bomb.gz")
    assert not looks_like_reference(save(tmp_path / "card.json", {"model": 1}))
    with pytest.raises(FormatError, match="cannot be read"):
        read_reference(tmp_path / "nowhere.json")
    assert json.loads(DATA.read_text(encoding="utf-8"))["models"]
