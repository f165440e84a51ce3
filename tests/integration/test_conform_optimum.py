"""Models that optimum-quanto and OpenVINO wrote, against the card of their model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantaudit.card.schema import Card
from quantaudit.conform.artifacts.read import read_artifact
from quantaudit.conform.run import conform
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.policy import load_policy
from tests.artifacts import DOWN, OUT, codes_of, compare, rewrite, run
from tests.llm_compressor import open_model


@pytest.fixture(scope="session")
def quanto_model(tiny_folder: Path, tiny_corpus: TokenizedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, quantized, calibrated and saved by optimum-quanto. Read only."""
    quanto = pytest.importorskip("optimum.quanto")
    model = open_model(tiny_folder)
    quanto.quantize(model, weights=quanto.qint8, activations=quanto.qint8, exclude="lm_head")
    with torch.no_grad(), quanto.Calibration():
        for sample in tiny_corpus.samples:
            model(input_ids=torch.from_numpy(sample.ids)[None], use_cache=False)
    quanto.freeze(model)
    target = tmp_path_factory.mktemp("quanto") / "model"
    quanto.QuantizedModelForCausalLM(model).save_pretrained(target)
    return target


def test_a_model_of_optimum_quanto(quanto_model: Path, card: Card, tmp_path: Path) -> None:
    result = compare(quanto_model, card)
    assert (result.outcome, result.kind, result.static) == ("pass", "optimum-quanto", 3 * 7)
    assert result.unquantized == ["lm_head"]
    stored = load_file(quanto_model / "model.safetensors")
    sites = {site.name: site for site in card.sites}
    for row in result.ranges:
        assert row.site is not None
        amax = sites[row.site].amax
        assert amax is not None
        assert row.coverage == pytest.approx(127 * float(stored[f"{row.module}.input_scale"]) / amax), row.module
    # Its calibration is a moving average: quiet tensors hardly differ from the peak, peaks of outliers are clipped.
    clipped = {finding.module for finding in result.findings if finding.code == "QA604"}
    assert clipped == {row.module for row in result.ranges if row.coverage is not None and row.coverage < 0.9}
    assert DOWN in clipped

    path = rewrite(
        quanto_model, tmp_path / "damaged", {f"{DOWN}.input_scale": None, f"{OUT}.input_scale": torch.ones(())}
    )
    found = compare(path, card)
    assert ("QA606", DOWN) in codes_of(found, "error")
    assert ("QA602", OUT) in codes_of(found, "error")  # one is what quanto starts from


def test_an_openvino_model(card: Card, tmp_path: Path) -> None:
    """FakeQuantize before each MatMul, under the names that OpenVINO's exporter gives; one of them smoothed."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    sites = {site.name: site for site in card.sites}
    amax = {DOWN: sites["layers.1.mlp.down_proj.input"].amax, OUT: sites["layers.0.self_attn.o_proj.input"].amax}
    smoothing = np.linspace(0.1, 0.9, 64, dtype=np.float32)

    def linear(module: str, width: int, high: float, smooth: bool) -> Any:
        x = ops.parameter([-1, -1, width], np.float32)
        node: Any = x
        if smooth:
            node = ops.multiply(node, ops.constant(smoothing.reshape(1, 1, -1)))
            node.set_friendly_name(f"__module.{module}/nncf_smooth_quant")
        ends = [ops.constant(np.float32(end)) for end in (-high, high, -high, high)]
        node = ops.fake_quantize(node, *ends, levels=255)
        weight = ops.multiply(
            ops.convert(ops.constant(np.ones((64, width), np.int8)), np.float32),
            ops.constant(np.full((64, 1), 0.01, np.float32)),
        )
        product = ops.matmul(node, weight, transpose_a=False, transpose_b=True)
        product.set_friendly_name(f"__module.{module}/ov_ext::linear/MatMul")
        return product, x

    plain, first = linear(DOWN, 128, amax[DOWN] / 2, smooth=False)
    smoothed, second = linear(OUT, 64, 0.25, smooth=True)
    model = openvino.Model([plain, smoothed], [first, second])
    openvino.save_model(model, tmp_path / "openvino_model.xml", compress_to_fp16=False)
    artifact = read_artifact(tmp_path, card.model.modules)
    assert artifact.weights == {DOWN: (64, 128), OUT: (64, 64)}

    small = card.model_copy(
        update={
            "simulation": card.simulation.model_copy(
                update={"groups": [row for row in card.simulation.groups if {DOWN, OUT} & set(row.members)]}
            )
        }
    )
    result = conform(artifact, small, load_policy())
    rows = {row.module: row for row in result.ranges}
    assert rows[DOWN].coverage == pytest.approx(0.5)
    assert not rows[DOWN].smoothed
    assert ("QA604", DOWN) in codes_of(result)
    peaks = sites["layers.0.self_attn.o_proj.input"].peaks
    assert rows[OUT].smoothed
    assert rows[OUT].coverage == pytest.approx(
        min(0.25 / (abs(p.value) * smoothing[p.channel]) for p in peaks), rel=1e-5
    )


def test_an_openvino_model_that_is_cut_off_is_an_error(
    card_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "openvino_model.xml"
    path.write_text("<net name='x'")
    code, _, err = run(capsys, path, "--card", card_file)
    assert code == 2
    assert "give the .xml with its .bin next to it" in err


def test_a_name_that_is_not_text_is_an_error(
    card_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    x = ops.parameter([-1, 64], np.float32)
    product = ops.matmul(x, ops.constant(np.ones((8, 64), np.float32)), transpose_a=False, transpose_b=True)
    product.set_friendly_name(f"__module.{OUT}/MatMul")
    path = tmp_path / "openvino_model.xml"
    openvino.save_model(openvino.Model([product], [x]), path, compress_to_fp16=False)
    path.write_bytes(path.read_bytes().replace(b"__module.", b"__modul\xce."))
    code, _, err = run(capsys, path, "--card", card_file)
    assert code == 2
    assert "can't decode byte" in err
