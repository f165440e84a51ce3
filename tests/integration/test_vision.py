"""Vision-language models: under text the tower is listed as unmeasured; with images its Linears are measured too."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantaudit.card.build import build_card
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import CorpusError, ModelError
from quantaudit.measure.collector import PATCH
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.forward.batches import NO_TOKEN, BatchLimit, arguments, batches
from quantaudit.model.loading.checkpoint import locate
from quantaudit.model.loading.load import LoadedModel, load_skeleton
from quantaudit.model.loading.processor import load_processor
from quantaudit.model.sites import discover
from quantaudit.pipeline.audit import audit
from quantaudit.pipeline.passes import measure_inputs
from quantaudit.pipeline.prepare import AuditInputs, prepare
from quantaudit.policy import load_policy
from quantaudit.quant.schemes import SCHEMES
from quantaudit.settings import Settings
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.run import simulate
from quantaudit.stats.site import summary
from tests.builders import load, random_corpus
from tests.vision import MODEL, SAVE, VOCABULARY, save_corpus, save_image

Save = Callable[..., Path]
PLACEHOLDER = {"qwen": 260, "gemma": 260}


def tower(model: nn.Module) -> set[str]:
    """Linears outside the language model."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "language_model" not in name and name != "lm_head"
    }


@pytest.fixture(scope="module", params=["qwen", "gemma"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the family. Read only."""
    return SAVE[family](tmp_path_factory.mktemp("vl") / family)


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_corpus(tmp_path_factory.mktemp("pictures"))


def settings(folder: Path, corpus: Path, **changes: Any) -> Settings:
    return Settings.of(
        **{"model": str(folder), "corpus": str(corpus), "device": "cpu", "evaluation_tokens": 256, **changes}
    )


@pytest.fixture(scope="module")
def subject(folder: Path, corpus_file: Path) -> AuditInputs:
    return prepare(settings(folder, corpus_file, attention="native"))


@pytest.fixture(scope="module")
def profile(subject: AuditInputs) -> Profile:
    return measure_inputs(subject)


# Text alone ----------------------------------------------------------------------------------------------------------


def test_text_measures_the_language_model_and_lists_the_vision_tower(folder: Path) -> None:
    loaded = load(folder)
    corpus = random_corpus([40, 33, 30, 29])
    profile = measure(loaded, corpus)
    architecture = discover(loaded.model)
    assert discover(load_skeleton(locate(str(folder)))) == architecture
    assert len(architecture.blocks) == 2
    assert all("language_model" in block for block in architecture.blocks)
    assert architecture.unmeasured == ()
    listed = {row.module: row for row in profile.provenance.unmeasured if not row.module.endswith("projector.output")}
    assert set(listed) == tower(loaded.model)
    assert {(row.reason, row.weights) for row in listed.values()} == {("no images in the corpus", True)}
    simulation = simulate(loaded, profile, corpus.samples, list(SCHEMES.values()), evaluation_tokens=64)
    card = build_card(profile, [], simulation, load_policy("default"), timings={})
    assert {scheme.status for scheme in card.verdict.schemes} == {"INCONCLUSIVE"}
    assert card.simulation.recipes[0].kl is not None


# With images ---------------------------------------------------------------------------------------------------------


def hooked(loaded: LoadedModel, corpus: TokenizedCorpus) -> dict[str, dict[int, Tensor]]:
    """Inputs of every Linear by module and sample, by hooks of the test's own, each sample run alone."""
    seen: dict[str, dict[int, Tensor]] = defaultdict(dict)
    current = [0]
    handles = []
    for name, module in loaded.model.named_modules():
        if isinstance(module, nn.Linear):

            def keep(_module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                assert current[0] not in seen[name]
                seen[name][current[0]] = args[0].detach().reshape(-1, args[0].shape[-1]).clone()

            handles.append(module.register_forward_pre_hook(keep))
    for sample in corpus.samples:
        current[0] = sample.index
        given: dict[str, Any] = {"input_ids": torch.from_numpy(sample.ids)[None]}
        if sample.pictures is not None:
            given |= sample.pictures.inputs(len(sample.ids))
            given["pixel_values"] = given["pixel_values"].to(loaded.model.dtype)
        with torch.no_grad():
            loaded.model(**given, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def test_every_linear_is_measured_as_plain_hooks_see_it(subject: AuditInputs, profile: Profile) -> None:
    with subject.computed():
        seen = hooked(subject.loaded, subject.corpus)
    sites = {member: site for site in profile.sites if site.tap == "input" for member in site.members}
    assert tower(subject.loaded.model) <= set(sites)
    for member in seen:
        site = sites[member]
        for split in ("calibration", "evaluation"):
            own = [s.index for s in subject.corpus.samples if s.split == split and s.index in seen[member]]
            found = profile.split(site.name, split)
            assert found is not None
            raw = torch.cat([seen[member][index] for index in own])
            assert found.extremes.sample.tolist() == own
            assert found.extremes.tokens.tolist() == [len(seen[member][index]) for index in own]
            assert found.distribution.counts.sum() == raw.numel()
            assert summary(found).amax == float(raw.abs().max())
            np.testing.assert_array_equal(found.channel_amax, raw.abs().amax(0).float().numpy())
            value, where = found.peaks.value[0], (found.peaks.sample[0], found.peaks.position[0])
            assert float(seen[member][where[0]][where[1], found.peaks.channel[0]]) == value


def test_nothing_is_left_unmeasured(profile: Profile, family: str) -> None:
    assert profile.provenance.unmeasured == []
    projectors = [site for site in profile.sites if site.kind == "projector_output"]
    assert len(projectors) == (family == "gemma")  # whose projector has no Linear
    for site in projectors:
        whole = profile.whole(site.name)
        assert whole is not None
        assert whole.tokens == 4 * 7  # tokens of seven images


def test_what_did_not_run_although_there_were_images_is_listed(folder: Path, corpus_file: Path) -> None:
    subject = prepare(settings(folder, corpus_file))
    model = subject.loaded.model
    block = next(
        module
        for name, module in model.named_modules()
        if name.endswith(("visual.blocks.2.mlp", "encoder.layers.2.mlp")) and "language" not in name
    )
    block.forward = lambda hidden: hidden
    listed = {row.module: row.reason for row in measure_inputs(subject).provenance.unmeasured}
    assert set(listed) == {name for name in tower(model) if ".2.mlp." in name}
    assert all("never ran" in reason for reason in listed.values())


def test_patches_are_no_tokens(subject: AuditInputs, profile: Profile, family: str) -> None:
    vision = tower(subject.loaded.model)
    pictured = {s.index for s in subject.corpus.samples if s.pictures is not None}
    assert len(pictured) == 6
    for site in profile.sites:
        whole = profile.whole(site.name)
        assert whole is not None
        if vision & set(site.members):
            assert (site.kind, site.layer) == ("linear_input", None)
            assert set(whole.peaks.token.tolist()) == {NO_TOKEN}
            assert set(whole.extremes.sample.tolist()) == pictured
        elif site.kind != "projector_output":
            assert whole.tokens == subject.corpus.info.tokens
            ids = {s.index: s.ids for s in subject.corpus.samples}
            places = zip(whole.peaks.sample, whole.peaks.position, whole.peaks.token, strict=True)
            assert all(ids[sample][position] == token for sample, position, token in places)
    assert profile.provenance.token_text[NO_TOKEN] == PATCH


def test_the_text_holds_a_placeholder_for_every_patch_that_reaches_it(subject: AuditInputs, family: str) -> None:
    for sample in subject.corpus.samples:
        placeholders = int((sample.ids == PLACEHOLDER[family]).sum())
        if sample.pictures is None:
            assert placeholders == 0
            continue
        given = sample.pictures.inputs(len(sample.ids))
        if family == "qwen":
            assert placeholders == int(given["image_grid_thw"].prod(-1).sum()) // 4
        else:
            assert placeholders == 4 * len(given["pixel_values"])


def test_a_picture_is_a_turn_of_the_user_before_its_text(subject: AuditInputs) -> None:
    sample = next(s for s in subject.corpus.samples if s.pictures is not None)
    text = subject.loaded.tokenizer.decode(sample.ids)
    assert text.startswith("[user]")
    assert text.endswith("What is in picture 0?")


def test_the_corpus_counts_its_images_and_any_batch_size_gives_the_same(subject: AuditInputs, profile: Profile) -> None:
    assert (subject.corpus.info.images, subject.corpus.info.samples) == (6, 12)
    with subject.computed():
        again = measure(subject.loaded, subject.corpus, batch=BatchLimit(4))
    vision = tower(subject.loaded.model)
    for site in profile.sites:
        a, b = profile.whole(site.name), again.whole(site.name)
        assert a is not None
        assert b is not None
        assert a.distribution.counts.sum() == b.distribution.counts.sum()
        if vision & set(site.members):
            assert np.array_equal(a.distribution.counts, b.distribution.counts)


def test_a_spike_planted_in_the_tower_is_found_there(family: str, corpus_file: Path, tmp_path: Path) -> None:
    model = MODEL[family]()
    leaves = {
        "qwen": ("blocks.1.mlp.up_proj", "blocks.1.mlp.down_proj"),
        "gemma": ("layers.1.mlp.fc1", "layers.1.mlp.fc2"),
    }
    first, second = (next(n for n in sorted(tower(model)) if n.endswith(leaf)) for leaf in leaves[family])
    with torch.no_grad():
        model.get_submodule(first).weight[77] *= 3000
    subject = prepare(settings(SAVE[family](tmp_path / "m", model), corpus_file))
    profile = measure_inputs(subject)
    peaks = {}
    for site in profile.sites:
        whole = profile.whole(site.name)
        if site.kind == "linear_input" and whole is not None:
            peaks[site.members[0]] = (float(np.abs(whole.peaks.value[0])), int(whole.peaks.channel[0]))
    assert max(peaks, key=lambda member: peaks[member]) == second
    assert peaks[second][1] == 77


def test_the_whole_audit_runs_with_images(subject: AuditInputs, folder: Path, corpus_file: Path, family: str) -> None:
    said: list[str] = []
    result = audit(settings(folder, corpus_file), say=said.append)
    assert "samples with images run one at a time" in said
    chosen = select(subject.corpus.samples, 256)
    assert any(sample.pictures is not None for sample in chosen)
    simulation = result.simulation
    assert all(row.kl is not None and row.kl > 0 for row in simulation.recipes)
    inside = [row for row in simulation.groups if row.layer is not None]
    assert all(row.price is not None for row in inside)
    replayed = [row for row in inside if row.scheme in ("int8_static_per_tensor", "int8_dynamic_per_token")]
    assert replayed
    assert all(row.damage is not None for row in replayed)
    assert simulation.evaluation.tokens == sum(len(sample.ids) for sample in chosen)
    vision = tower(subject.loaded.model)
    priced = [row.price for row in simulation.groups if set(row.members) & vision]
    assert priced
    assert all(price is not None and price >= 0 for price in priced)
    assert any(price > 0 for price in priced if price is not None)
    coverage = result.card.coverage
    assert (coverage.linears, coverage.unmeasured) == (coverage.linears_measured, [])
    assert not any("not measured" in scheme.reason for scheme in result.card.verdict.schemes)
    by_sample = {peak.token for site in result.card.sites for peak in site.peaks if peak.token_id == NO_TOKEN}
    assert by_sample == {PATCH}


def test_two_runs_give_the_same_statistics(subject: AuditInputs, profile: Profile) -> None:
    from tests.builders import differences

    again = measure_inputs(subject)
    assert {key: differences(profile.statistics[key], again.statistics[key]) for key in profile.statistics} == {
        key: [] for key in profile.statistics
    }


def test_without_special_tokens_placeholders_stand_before_the_text(
    folder: Path, corpus_file: Path, family: str
) -> None:
    subject = prepare(settings(folder, corpus_file, special_tokens="none"))
    sample = next(s for s in subject.corpus.samples if s.pictures is not None)
    text = subject.loaded.tokenizer.decode(sample.ids, skip_special_tokens=True)
    assert text.strip() == "What is in picture 0?"
    assert (sample.ids == PLACEHOLDER[family]).any()


def test_a_checkpoint_without_template_takes_images_too(family: str, corpus_file: Path, tmp_path: Path) -> None:
    subject = prepare(settings(SAVE[family](tmp_path / "m", template=False), corpus_file))
    sample = next(s for s in subject.corpus.samples if s.pictures is not None)
    (batch,) = batches([sample], device=torch.device("cpu"))
    with torch.no_grad():
        logits = subject.loaded.model(**arguments(subject.loaded.model, batch)).logits
    assert logits.shape == (1, len(sample.ids), VOCABULARY)


# Cutting -------------------------------------------------------------------------------------------------------------


def test_a_sample_is_cut_behind_its_images_only(subject: AuditInputs) -> None:
    sample = next(s for s in subject.corpus.samples if s.pictures is not None and s.split == "evaluation")
    least = sample.pictures.least(sample.ids)
    (cut,) = select([sample], least + 3)
    assert len(cut.ids) == least + 3
    assert select([sample], least - 1) == []
    (batch,) = batches([cut], device=torch.device("cpu"))
    with torch.no_grad():
        short = subject.loaded.model(**arguments(subject.loaded.model, batch)).logits
        (whole,) = batches([sample], device=torch.device("cpu"))
        full = subject.loaded.model(**arguments(subject.loaded.model, whole)).logits
    torch.testing.assert_close(short[0], full[0, : least + 3], rtol=0.05, atol=0.05)


def test_images_beyond_the_length_are_refused_with_the_row(folder: Path, corpus_file: Path) -> None:
    with pytest.raises(CorpusError, match="images end at token") as caught:
        prepare(settings(folder, corpus_file, max_length=8))
    assert "row-1" in (caught.value.where or "")
    assert "--max-length" in (caught.value.hint or "")


# Bad input -----------------------------------------------------------------------------------------------------------


def test_a_model_of_text_alone_takes_no_images(tiny_folder: Path, corpus_file: Path) -> None:
    with pytest.raises(ModelError, match="this model takes none"):
        prepare(settings(tiny_folder, corpus_file))


def test_a_checkpoint_without_image_processor_is_named(family: str, corpus_file: Path, tmp_path: Path) -> None:
    folder = SAVE[family](tmp_path / "m")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="no image processor") as caught:
        prepare(settings(folder, corpus_file))
    assert caught.value.where == str(folder)


def test_a_broken_image_processor_is_named(family: str, tmp_path: Path) -> None:
    folder = SAVE[family](tmp_path / "m")
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="image processor cannot be loaded"):
        load_processor(locate(str(folder)))


def test_text_with_a_placeholder_of_its_own_is_one_error(folder: Path, family: str, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 0)
    extra = {"qwen": "<|image_pad|>", "gemma": "<start_of_image>"}[family]
    rows = [{"image": "a.png", "text": f"one {extra} more"}, {"text": "b"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CorpusError, match="processor cannot take this row") as caught:
        prepare(settings(folder, tmp_path / "c.jsonl"))
    assert "row-1" in (caught.value.where or "")
