"""Artifacts that llm-compressor really wrote, then damaged on purpose, against the card of their model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantaudit.card.schema import Card
from quantaudit.conform.run import Conformance
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import ModelError
from quantaudit.model.weight_sketch import sketch_of
from tests.artifacts import DOWN, GATE, OUT, codes_of, compare, rewrite, run
from tests.builders import save_checkpoint, tiny_model
from tests.llm_compressor import ASYMMETRIC, DYNAMIC, FP8, W8A8, open_model, quantize, quantized_checkpoint


@pytest.fixture
def damaged(artifact: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the artifact with some tensors replaced, or dropped where they are None."""

    def change(**tensors: Any) -> Path:
        return rewrite(artifact, tmp_path / "damaged", tensors)

    return change


def test_the_toolkits_own_artifact_covers_exactly_what_was_measured(artifact: Path, card: Card) -> None:
    result = compare(artifact, card)
    assert (result.outcome, result.kind, result.findings) == ("pass", "compressed-tensors", [])
    assert result.static == 3 * 7
    assert {row.module for row in result.ranges} == {
        name for name in (m.name for m in card.model.modules) if name.endswith("_proj")
    }
    for row in result.ranges:
        # Two bfloat16 roundings, of the division and of the scale.
        assert row.coverage == pytest.approx(1, rel=2**-7), row.module
    stored = load_file(artifact / "model.safetensors")[f"{DOWN}.input_scale"]
    (row,) = [row for row in result.ranges if row.module == DOWN]
    site = next(site for site in card.sites if site.name == "layers.1.mlp.down_proj.input")
    assert row.coverage == pytest.approx(float(stored) * 127.5 / site.amax)


def test_a_nan_an_eps_and_a_shrunken_scale_are_found_where_they_are(damaged: Callable[..., Path], card: Card) -> None:
    path = damaged(
        **{
            f"{DOWN}.input_scale": torch.full((1,), float("nan")).bfloat16(),
            f"{OUT}.input_scale": torch.full((1,), torch.finfo(torch.float32).eps).bfloat16(),
            f"{GATE}.input_scale": lambda scale: scale / 2,
        }
    )
    result = compare(path, card)
    assert result.outcome == "fail"
    assert codes_of(result) == {("QA601", DOWN), ("QA602", OUT), ("QA604", GATE), ("QA605", GATE)}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (float("inf"), "QA601"),
        (0.0, "QA602"),
        (-0.01, "QA602"),
        (1e-38, "QA603"),
        (3e38, "QA603"),
        (torch.finfo(torch.bfloat16).smallest_normal, "QA603"),
    ],
)
def test_other_garbage(damaged: Callable[..., Path], card: Card, value: float, code: str) -> None:
    result = compare(damaged(**{f"{DOWN}.input_scale": torch.tensor([value]).bfloat16()}), card)
    assert codes_of(result) == {(code, DOWN)}
    assert result.outcome == "fail"


def test_a_shrunken_scale_alone_is_a_warning_not_a_failure(damaged: Callable[..., Path], card: Card) -> None:
    result = compare(damaged(**{f"{DOWN}.input_scale": lambda scale: scale * 0.75}), card)
    assert codes_of(result) == {("QA604", DOWN)}
    assert result.outcome == "pass"
    assert result.findings[0].value == pytest.approx(0.75, rel=0.05)
    assert result.ranges[0].module == DOWN


def test_a_range_that_wastes_levels_is_a_warning(damaged: Callable[..., Path], card: Card) -> None:
    result = compare(damaged(**{f"{DOWN}.input_scale": lambda scale: scale * 8}), card)
    assert codes_of(result) == {("QA604", DOWN)}
    assert "levels are wasted" in result.findings[0].message


def test_garbage_among_weight_scales_is_found(damaged: Callable[..., Path], card: Card) -> None:
    def plant(value: float) -> Callable[[Tensor], Tensor]:
        return lambda scale: scale.clone().index_fill_(0, torch.tensor([5]), value)

    path = damaged(
        **{
            f"{DOWN}.weight_scale": plant(float("nan")),
            f"{GATE}.weight_scale": plant(0.0),
            f"{OUT}.weight_scale": plant(1e-12),
        }
    )
    assert codes_of(compare(path, card)) == {("QA601", DOWN), ("QA602", GATE), ("QA603", OUT)}


def test_a_weight_scale_may_be_negative_where_a_cache_scale_may_not(damaged: Callable[..., Path], card: Card) -> None:
    """AutoRound saves a negative scale for a channel that reaches further above zero than below."""
    flip = lambda scale: scale * torch.where(torch.arange(len(scale)) % 2 == 0, 1, -1)[:, None]  # noqa: E731
    codes = lambda weight: flip(weight.short()).clamp(-128, 127).to(torch.int8)  # noqa: E731
    attention = "model.layers.1.self_attn"
    path = damaged(
        **{f"{DOWN}.weight": codes, f"{DOWN}.weight_scale": flip, f"{attention}.k_scale": torch.tensor([-0.01])}
    )
    # No scheme calls for the scale of a cache either.
    assert codes_of(compare(path, card)) == {("QA602", attention), ("QA611", attention)}


def test_a_channel_without_weights_may_have_any_scale(damaged: Callable[..., Path], artifact: Path, card: Card) -> None:
    def blank(weight: Tensor) -> Tensor:
        weight[5] = 0
        return weight

    tiny = lambda scale: scale.index_fill_(0, torch.tensor([5]), 1e-12)  # noqa: E731
    tensors = load_file(artifact / "model.safetensors")
    sketch = sketch_of(blank(tensors[f"{OUT}.weight"]) * tensors[f"{OUT}.weight_scale"].float())
    weights = {**(card.model.weights or {}), f"{OUT}.weight": sketch}
    without = card.model_copy(update={"model": card.model.model_copy(update={"weights": weights})})
    assert codes_of(compare(damaged(**{f"{OUT}.weight": blank, f"{OUT}.weight_scale": tiny}), without)) == set()


def test_what_the_configuration_targets_must_have_its_scales(damaged: Callable[..., Path], card: Card) -> None:
    path = damaged(**{f"{DOWN}.input_scale": None, f"{OUT}.weight_scale": None})
    result = compare(path, card)
    assert codes_of(result) == {("QA606", DOWN), ("QA606", OUT)}
    assert result.outcome == "fail"


def test_a_range_that_nothing_was_measured_for_is_inconclusive(artifact: Path, card: Card) -> None:
    """The card without one site, as when its hook never fired."""
    blank = [
        site.model_copy(update={"amax": None, "min": None, "max": None, "median": None})
        if site.name == "layers.1.mlp.down_proj.input"
        else site
        for site in card.sites
    ]
    result = compare(artifact, card.model_copy(update={"sites": blank}))
    assert codes_of(result) == {("QA607", DOWN)}
    assert result.outcome == "inconclusive"


@pytest.mark.parametrize("recipe", [ASYMMETRIC, FP8])
def test_other_static_grids_cover_what_was_measured(
    recipe: str, tiny_folder: Path, tiny_corpus: TokenizedCorpus, card: Card, tmp_path: Path
) -> None:
    result = compare(quantized_checkpoint(tiny_folder, tmp_path / "q", recipe, list(tiny_corpus.samples)), card)
    assert (result.outcome, result.findings) == ("pass", [])
    for row in result.ranges:
        # As above; a rounded zero point moves one end by up to half a step more.
        assert row.coverage == pytest.approx(1, rel=2**-6), row.module


def test_a_dynamic_artifact_has_nothing_to_compare_and_says_so(
    tiny_folder: Path, tiny_corpus: TokenizedCorpus, card: Card, tmp_path: Path
) -> None:
    result = compare(quantized_checkpoint(tiny_folder, tmp_path / "q", DYNAMIC, list(tiny_corpus.samples)), card)
    assert (result.outcome, result.static, result.dynamic) == ("pass", 0, 21)
    assert codes_of(result, "info") == {("QA608", None)}


def test_the_members_of_groups_are_the_same_without_a_simulation(artifact: Path, card: Card) -> None:
    bare = card.model_copy(update={"simulation": None})
    assert compare(artifact, bare).ranges == compare(artifact, card).ranges


def test_a_module_that_the_card_does_not_know_is_inconclusive(artifact: Path, card: Card) -> None:
    assert card.simulation is not None
    groups = [row for row in card.simulation.groups if DOWN not in row.members]
    smaller = card.model_copy(update={"simulation": card.simulation.model_copy(update={"groups": groups})})
    result = compare(artifact, smaller)
    assert codes_of(result) == {("QA607", DOWN)}
    assert "the card does not know" in result.findings[0].message


def test_an_asymmetric_range_needs_zero_within(
    tiny_folder: Path, tiny_corpus: TokenizedCorpus, card: Card, tmp_path: Path
) -> None:
    source = quantized_checkpoint(tiny_folder, tmp_path / "q", ASYMMETRIC, list(tiny_corpus.samples)[:4])
    changes = {f"{DOWN}.input_zero_point": lambda zero: zero.int() + 400}
    found = codes_of(compare(rewrite(source, tmp_path / "damaged", changes), card), "error")
    assert found == {("QA602", DOWN), ("QA613", DOWN)}  # 400 is beyond INT8, and is stored as INT32


def test_shards_are_read_like_one_file(
    tiny_folder: Path, tiny_corpus: TokenizedCorpus, card: Card, tmp_path: Path
) -> None:
    samples = list(tiny_corpus.samples)[:4]
    model = open_model(tiny_folder)
    quantize(model, W8A8, samples)
    model.save_pretrained(tmp_path / "one", save_compressed=True)
    model = open_model(tiny_folder)
    quantize(model, W8A8, samples)
    model.save_pretrained(tmp_path / "many", save_compressed=True, max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = compare(tmp_path / "one", card), compare(tmp_path / "many", card)
    assert one.ranges == many.ranges
    next((tmp_path / "many").glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match="is missing"):
        compare(tmp_path / "many", card)


# The command line ----------------------------------------------------------------------------------------------------


def test_the_verb_passes_and_fails(
    artifact: Path, damaged: Callable[..., Path], card_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, artifact, "--card", card_file)
    assert code == 0
    assert "21 static input ranges" in out
    assert "PASS" in out
    bad = damaged(**{f"{DOWN}.input_scale": torch.tensor([float("nan")]).bfloat16()})
    code, out, _ = run(capsys, bad, "--card", card_file)
    assert code == 1
    assert "QA601" in out
    assert "FAIL" in out
    code, out, _ = run(capsys, bad, "--card", card_file, "--format", "json")
    assert code == 1
    result = Conformance.model_validate_json(out)
    assert [finding.module for finding in result.findings] == [DOWN]
    assert next(row for row in result.ranges if row.module == DOWN).scale is None


def test_another_model_is_an_error(
    card_file: Path, tiny_corpus: TokenizedCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, words in (
        ({"num_hidden_layers": 2}, "7 of the card's Linears are not in it"),
        ({"intermediate_size": 96}, "has the shape [64, 96], on the card [64, 128]"),
    ):
        source = save_checkpoint(tmp_path / f"m{len(words)}", tiny_model("llama", **changes))
        path = quantized_checkpoint(source, tmp_path / f"q{len(words)}", W8A8, list(tiny_corpus.samples)[:2])
        code, _, err = run(capsys, path, "--card", card_file)
        assert code == 2
        assert "not the model of the card" in err
        assert words in " ".join(err.split())


def test_two_sets_of_weights_are_refused_and_what_no_loader_opens_is_not_read(
    artifact: Path, card: Card, card_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rewrite(artifact, tmp_path / "two", {})
    single, shard = folder / "model.safetensors", folder / "model-00001-of-00001.safetensors"
    garbage = {name: torch.zeros_like(tensor) for name, tensor in load_file(single).items()}
    save_file(garbage, shard, metadata={"format": "pt"})
    assert compare(folder, card).outcome == "pass"  # no index names it
    index = {"metadata": {}, "weight_map": dict.fromkeys(garbage, shard.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    code, _, err = run(capsys, folder, "--card", card_file)
    assert (code, "model.safetensors and an index of other files" in err) == (2, True), err
    single.unlink()
    assert compare(folder, card).outcome == "fail"


def test_bad_input_is_one_clear_error(
    artifact: Path, tiny_folder: Path, card_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncated = rewrite(artifact, tmp_path / "truncated", {})
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    unknown = rewrite(artifact, tmp_path / "unknown", {})
    config = json.loads((unknown / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "gptq"
    (unknown / "config.json").write_text(json.dumps(config))
    broken = rewrite(artifact, tmp_path / "broken", {})
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": 3}}}
    (broken / "config.json").write_text(json.dumps(config))

    empty = tmp_path / "empty"
    empty.mkdir()
    for path, words in (
        (tmp_path / "nowhere", "no such artifact"),
        (empty, "holds no config.json"),
        (tiny_folder, "is not quantized"),
        (truncated, "the file is incomplete"),
        (unknown, "is quantized by 'gptq'"),
        (broken, "quantization_config is not one of compressed-tensors"),
    ):
        code, _, err = run(capsys, path, "--card", card_file)
        assert (code, words in " ".join(err.split())) == (2, True), err
    assert run(capsys, artifact, "--card", tmp_path / "none.json")[0] == 2


def test_a_scale_of_another_shape_is_a_finding(damaged: Callable[..., Path], card: Card) -> None:
    result = compare(damaged(**{f"{DOWN}.input_scale": torch.ones(2)}), card)
    assert codes_of(result, "error") == {("QA612", DOWN)}
    assert f"`{DOWN}.input_scale` has the shape [2], not [1]" in result.findings[0].message


def test_a_card_without_a_single_linear_leaves_every_range_unknown(artifact: Path, card: Card) -> None:
    result = compare(artifact, card.model_copy(update={"simulation": None, "sites": []}))
    assert result.outcome == "inconclusive"
    assert {finding.code for finding in result.findings} == {"QA607"}
