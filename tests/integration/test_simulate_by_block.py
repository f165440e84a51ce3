"""A model whose blocks stay on disk is simulated to the very numbers of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.resume import RunState
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import MeasurementError, UsageError
from quantaudit.measure.profile import profile_bytes
from quantaudit.measure.run import measure
from quantaudit.model.blockwise import budget
from quantaudit.model.blockwise.budget import PROGRAM, copies_bytes
from quantaudit.model.blockwise.input_store import Room
from quantaudit.model.blockwise.memory import resident_bytes
from quantaudit.model.forward import float32_products
from quantaudit.model.forward.arithmetic import computed_in
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.pipeline.audit import audit
from quantaudit.pipeline.measure import measure as measure_settings
from quantaudit.pipeline.prepare import AuditInputs, prepare
from quantaudit.pipeline.simulate import simulate as simulate_settings
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, SCHEMES, find_scheme
from quantaudit.settings import Settings
from quantaudit.simulate.experiment import GroupOptions
from quantaudit.simulate.logits import score_plans as scoring
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.run import simulate
from quantaudit.simulate.sensitivity.draws import draws_for
from quantaudit.simulate.sensitivity.uncertain import MOST as UNCERTAIN
from tests.builders import hooks, load, random_corpus, save_checkpoint, tiny_model
from tests.command_line import run
from tests.families import FAMILIES, family_model
from tests.tiny_architectures import tiny_model as any_model
from tests.vision import TEXT, save_corpus, save_gemma, save_qwen

SHAPES = ("gemma3n_text", "recurrent_gemma", "jamba", "zamba2", "ernie4_5_moe", "gemma4_unified", "fuyu")
"""Architectures of other kinds than those of the families."""
REPLAYED = ("qwen3", "gemma3", "qwen3-moe", "gpt-oss", "qwen3.5-moe", "mamba2", "gpt2")
"""Families whose blocks are replayed differently; the others are like one of them."""
LENGTHS = (40, 33, 33, 24, 20, 11, 3)


@pytest.fixture(autouse=True)
def spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that may wait on disk does."""
    monkeypatch.setattr(budget, "UNLIMITED", Room(device=0))


def simulated(loaded: LoadedModel, profile: Any, corpus: TokenizedCorpus, **options: Any) -> Simulation:
    schemes = [find_scheme(name) for name in SCHEMES]
    return simulate(
        loaded, profile, corpus.samples, schemes, evaluation_tokens=4096, groups=GroupOptions(single=2, **options)
    )


def same(folder: Path, **options: Any) -> LoadedModel:
    """Simulate both ways, and return the model whose blocks are on disk."""
    corpus = random_corpus(LENGTHS)
    whole, parts = load(folder), load(folder, by_block=True)
    assert parts.weights is not None, parts.runs_whole
    profile = measure(whole, corpus)
    expected, got = (simulated(loaded, profile, corpus, **options) for loaded in (whole, parts))
    assert got.model_dump_json() == expected.model_dump_json()
    assert expected.evaluation.price_source == options.get("score", "gradient")
    assert hooks(parts.model) == hooks(whole.model) + len(parts.weights.blocks)
    assert all(
        tensor.is_meta for path in parts.weights.blocks for tensor in parts.model.get_submodule(path).parameters()
    )
    return parts


@pytest.mark.parametrize("family", REPLAYED)
def test_prices_from_damage(family: str, tmp_path: Path) -> None:
    same(save_checkpoint(tmp_path / "m", family_model(family)), score="damage")


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_prices_from_damage_of_other_shapes(shape: str, tmp_path: Path) -> None:
    same(save_checkpoint(tmp_path / "m", any_model(shape)), score="damage")


@pytest.mark.parametrize("family", FAMILIES)
def test_prices_from_gradients(family: str, tmp_path: Path) -> None:
    """Each block is read twice to see whether samples run side by side, and for gradients there, and back once for each
    draw, replays, the floor, single groups and the whole model; once more for each single group that is followed by
    another."""
    parts = same(save_checkpoint(tmp_path / "m", family_model(family)))
    assert parts.weights is not None
    least = (6 + draws_for(sum(LENGTHS))) * len(parts.weights.blocks)
    assert least <= parts.weights.loads <= least + 2 + UNCERTAIN


@pytest.mark.parametrize("shape", SHAPES)
def test_prices_from_gradients_of_other_shapes(shape: str, tmp_path: Path) -> None:
    same(save_checkpoint(tmp_path / "m", any_model(shape)))


@pytest.mark.parametrize("shared", [1, 2])
def test_layers_that_use_keys_and_values_of_others(shared: int, tmp_path: Path) -> None:
    """Gradients reach the layer that makes them from those that use them, past the layers between."""
    kinds = ["sliding_attention", "full_attention"] * 2
    model = family_model("gemma4", num_hidden_layers=4, layer_types=kinds, num_kv_shared_layers=shared)
    same(save_checkpoint(tmp_path / "m", model))


def test_products_in_float32(tmp_path: Path) -> None:
    folder, corpus = save_checkpoint(tmp_path / "m", family_model("qwen3-moe")), random_corpus(LENGTHS)
    profile = measure(load(folder), corpus)
    found = []
    for by_block in (False, True):
        loaded = load(folder, by_block=by_block)
        with computed_in("float32", loaded.model):
            found.append(simulated(loaded, profile, corpus).model_dump_json())
    assert found[0] == found[1]


def save_qwen3(folder: Path) -> Path:
    """Qwen3-VL, whose tower hands features to several layers past those before them."""
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    vision = {
        "depth": 3, "hidden_size": 128, "intermediate_size": 512, "num_heads": 4, "out_hidden_size": 64,
        "patch_size": 14, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "num_hidden_layers": 4, "rope_parameters": rope}, vision_config=vision,
        tie_word_embeddings=False, image_token_id=260, video_token_id=261, vision_start_token_id=262,
        vision_end_token_id=263,
    )  # fmt: skip
    torch.manual_seed(0)
    return save_qwen(folder, transformers.Qwen3VLForConditionalGeneration(config).to(torch.bfloat16).eval())


@pytest.mark.parametrize("save", [save_qwen, save_gemma, save_qwen3])
def test_images(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder, corpus = save(tmp_path / "m"), save_corpus(tmp_path)
    inputs = prepare(Settings.of(str(folder), str(corpus), device="cpu"))
    parts = load(folder, by_block=True)
    profile = measure(inputs.loaded, inputs.corpus)
    expected, got = (simulated(loaded, profile, inputs.corpus) for loaded in (inputs.loaded, parts))
    assert got.model_dump_json() == expected.model_dump_json()
    assert expected.evaluation.price_source == "gradient"


def test_plans_that_quantize_weights_otherwise_read_a_block_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five plans in passes of two, of the output projection too, and one that quantizes nothing."""
    monkeypatch.setattr(scoring, "AT_ONCE", 2)
    folder = save_checkpoint(tmp_path / "m", family_model("qwen3"))
    whole, parts = load(folder), load(folder, by_block=True)
    assert parts.weights is not None
    groups, samples = discover(whole.model).groups, random_corpus(LENGTHS).samples
    fp4, mx = find_scheme("NVFP4A16"), find_scheme("mxfp4")
    chosen: list[dict[str, Any]] = [
        {group.name: INT8_DYNAMIC for group in groups},
        {group.name: mx for group in groups if group.layer == 1},
        {group.name: fp4 for group in groups if group.projection != "lm_head"},
        {"lm_head": INT8_DYNAMIC},
        {},
    ]
    plans = [
        Plan(
            name=str(number),
            title="",
            schemes={member: by_group[g.name] for g in groups if g.name in by_group for member in g.members},
            qparams={},
            groups=len(by_group),
        )
        for number, by_group in enumerate(chosen)
    ]
    done: list[int] = []
    blocks = parts.weights.blocks
    expected = score_plans(whole.model, samples, plans, blocks=blocks)
    rows = score_plans(
        parts.model,
        samples,
        plans,
        blocks=blocks,
        weights=parts.weights,
        progress=lambda amount=1: done.append(amount),
    )
    assert [row.model_dump_json() for row in rows] == [row.model_dump_json() for row in expected]
    assert sum(done) == len(plans) * len(samples)
    assert rows[3].kl
    assert not rows[4].kl
    # Each block once a pass, and once more where the next plan does not quantize it as the one before.
    assert parts.weights.loads == 3 * len(blocks) + 4


def test_a_plan_that_does_not_fit_its_block_leaves_nothing(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model("qwen3"))
    parts = load(folder, by_block=True)
    assert parts.weights is not None
    before, samples = hooks(parts.model), random_corpus(LENGTHS).samples
    member = f"{parts.weights.blocks[1]}.mlp.down_proj"
    plan = Plan(name="a", title="", schemes={member: INT8_STATIC}, qparams={member: "no range"}, groups=1)  # type: ignore[dict-item]
    with pytest.raises(AttributeError):
        score_plans(parts.model, samples, [plan], weights=parts.weights)
    assert hooks(parts.model) == before
    assert all(tensor.is_meta for tensor in parts.model.get_submodule(member).parameters())
    assert torch.is_grad_enabled()


def test_a_report_of_a_model_that_does_not_fit_its_budget_is_the_same_card(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model("qwen3-moe"))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "quant_stage:\n  quant_modifiers:\n    QuantizationModifier:\n"
        "      scheme: W8A8\n      targets: [Linear]\n      ignore: [lm_head, 're:.*gate$']\n"
    )
    settings = Settings.of(
        str(folder), samples=8, max_length=32, evaluation_tokens=128, device="cpu", recipes=(recipe,), single_groups="1"
    )
    said: list[str] = []
    whole = audit(settings, memory=resident_bytes() + 8 * PROGRAM)
    parts = audit(settings, say=said.append, memory=resident_bytes() + PROGRAM // 2)
    assert "of weights, and what is quantized of them, do not fit into" in said[0]
    assert "run block by block, each read from disk" in said[0]
    assert profile_bytes(parts.profile) == profile_bytes(whole.profile)
    assert parts.simulation.model_dump_json() == whole.simulation.model_dump_json()
    cards = [card.model_dump() for card in (whole.card, parts.card)]
    for card in cards:
        card["environment"]["timings"] = card["created"] = card["seal"] = None
    assert cards[0] == cards[1]


def test_a_recipe_that_smooths_is_named_and_runs_whole(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    recipe = Path("recipes/w8a8_smoothquant.yaml")
    settings = Settings.of(str(folder), samples=8, max_length=32, evaluation_tokens=64, device="cpu", recipes=(recipe,))
    profile = measure_settings(settings)
    said: list[str] = []
    simulation = simulate_settings(settings, profile, say=said.append, memory=resident_bytes())
    assert f"and this model runs whole: {recipe.name} smooths it" in said[0]
    assert simulation.recipes[-1].kl is not None
    with pytest.raises(UsageError, match=r"do not fit into 9\.8 KiB, and this model runs whole"):
        simulate_settings(settings, profile, memory=10_000)  # nothing holds its weights there


@pytest.mark.parametrize("verb", ["report", "simulate"])
def test_the_command_line(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    text = ["--samples", "4", "--max-length", "16"]
    profile = str(tmp_path / "p.safetensors")
    assert run(None, "measure", folder, "--out", profile, *text)[0] == 0
    given = [str(folder), *text] if verb == "report" else [str(folder), "--profile", profile]
    given += ["--evaluation-tokens", "16", "--schemes", "int8", "--out", str(tmp_path / "out")]
    code, _, said = run(capsys, verb, *given, "--memory-budget", "1MiB")
    assert code == 2
    assert "does not fit give it the budget that `quantaudit plan` names" in " ".join(said.split())
    code, _, said = run(capsys, verb, *given, "--memory-budget", resident_bytes() + PROGRAM // 2)
    assert code == 0
    assert "run block by block" in " ".join(said.split())


def test_a_run_that_is_resumed_does_not_simulate_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that ends before its last stage goes on with that: the profile and all replays are there."""
    folder = save_checkpoint(tmp_path / "m", family_model("qwen3"))
    settings = Settings.of(
        str(folder), samples=8, max_length=32, evaluation_tokens=128, device="cpu", scheme_set="int8"
    )
    memory = resident_bytes() + PROGRAM // 2
    expected = audit(settings, memory=memory)

    def state(*, resume: bool) -> RunState:
        return RunState(Output(option="--out", path=tmp_path / "card", folder=True), resume=resume, say=lambda _: None)

    with monkeypatch.context() as patched:
        patched.setattr("quantaudit.simulate.run.score_plans", fail)
        with pytest.raises(MeasurementError, match="stopped"):
            audit(settings, memory=memory, state=state(resume=False))
    for name in ("measure.run.run_by_block", "simulate.run.record_pass", "simulate.logits.rounding_floor._SideBySide"):
        monkeypatch.setattr(f"quantaudit.{name}", fail)
    resumed = audit(settings, memory=memory, state=state(resume=True))
    assert profile_bytes(resumed.profile) == profile_bytes(expected.profile)
    assert resumed.simulation.model_dump_json() == expected.simulation.model_dump_json()


def fail(*_args: Any, **_options: Any) -> None:
    raise MeasurementError("stopped")


def test_float32_copies_are_of_one_block_alone(tmp_path: Path) -> None:
    """Those of blocks that are gone would take what the budget does not have."""
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama", num_hidden_layers=6).to(torch.bfloat16))
    options = {"samples": 4, "max_length": 16, "evaluation_tokens": 16, "device": "cpu", "arithmetic": "float32"}
    settings = Settings.of(str(folder), **options)
    whole, by_block = prepare(settings), prepare(settings, memory=resident_bytes() + PROGRAM)
    assert by_block.loaded.weights is not None
    assert 0 < copies_made(by_block) <= copies_bytes(by_block.loaded.weights.largest) < copies_made(whole)


def copies_made(inputs: AuditInputs) -> int:
    """Bytes of float32 copies that are kept after one pass of the model."""
    with inputs.computed(), torch.no_grad():
        inputs.loaded.model(input_ids=torch.from_numpy(inputs.corpus.samples[0].ids)[None])
        assert float32_products._EXCHANGE.products is not None
        return float32_products._EXCHANGE.products.weights.bytes
