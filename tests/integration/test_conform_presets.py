"""What llm-compressor saves by every preset fulfils its contract and passes; damaged, it does not.

`make mutations` runs all presets on all models and every mutation of them; CI takes one preset a format, and a seeded
sample of the mutations.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from compressed_tensors.quantization import preset_name_to_scheme

from quantaudit.card.schema import Card
from quantaudit.conform.artifacts.compressed import compressed_artifact
from quantaudit.conform.artifacts.expected import STORAGE
from quantaudit.quant.schemes import dump_args
from quantaudit.quant.weight_bytes import weight_bytes
from tests import artifact_mutations as made
from tests.memory_tensors import MemoryTensors

ALL = os.environ.get("QUANTAUDIT_ALL_MUTATIONS") == "1"
SAMPLE, CHECKED = 80, 8
"""Mutations of each artifact in CI; and how many of one are read anew."""
SUBJECTS = [
    *(("dense", preset) for preset in ("W8A8", "W4A16", "W4A16_ASYM", "W4AFP8", "FP8", "FP8_BLOCK", "NVFP4", "MXFP4")),
    ("dense", "MXFP8"), ("dense", "W3A16"), ("moe", "NVFP4"), ("moe", "W4A16"), ("mixtral", "W8A8"),
    ("qwen-vl", "FP8"), ("gemma-vl", "W4A16"),
]  # fmt: skip
if ALL:
    SUBJECTS = [(kind, preset) for kind in made.KINDS for preset in made.PRESETS]
SURVIVORS = {
    r"level .*\.weight_scale$": "fewer than four scales, or exponents that are equal by chance, near the others",
    r"set .*input_activations\.symmetric to False$": "dynamic integer inputs are served either way",
    r"set .*input_activations\.num_bits to [48]$": "scales of such inputs are computed as the model runs",
    r" W4A(4|8|FP8): set .*input_activations\.type to (int|float)$": "W4A8 and W4AFP8 are stored alike",
    r"set .*input_activations to None$": "the preset without quantized inputs is stored alike",
    r"set .*weights\.num_bits to \d$": "codes stored in bytes are dequantized alike",
    r"set .*(weights|input_activations)\.strategy to \w+$": "one group is one channel",
    r"set .*\.format to \S+$": "both formats store such a scheme alike",
    r"set .*weights\.group_size to \d+$": "the input is one group either way",
    r" W[23]A\d+: transpose .*\.weight$": "rounding to so few bits may be as far away, by sixteen projections",
    r"level .*\.weight_zero_point$": "zero points that are nearly equal already",
}
"""What conform cannot find, and why (docs/conform.md)."""
Make = Callable[[str, str], made.Subject]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes an artifact of (model, preset), once."""
    root = tmp_path_factory.mktemp("presets")

    @cache
    def source(kind: str) -> tuple[Path, Card]:
        folder = made.model_folder(kind, root / kind)
        return folder, made.card_of(folder)

    @cache
    def subject(kind: str, preset: str) -> made.Subject:
        return made.subject(kind, preset, *source(kind), root / f"{kind}-{preset}")

    return subject


@pytest.mark.parametrize(("kind", "preset"), SUBJECTS)
def test_what_llm_compressor_saves_fulfils_the_contract_exactly_and_passes(kind: str, preset: str, make: Make) -> None:
    subject = make(kind, preset)
    result = subject.audit()
    assert result.outcome == "pass"
    assert [row for row in result.findings if row.code != "QA608"] == []

    settings = subject.config["quantization_config"]
    artifact = compressed_artifact(
        MemoryTensors(subject.tensors), subject.config, settings, subject.card.model.modules, subject.name
    )
    checkpoint = artifact.checkpoint
    assert checkpoint is not None
    assert set(checkpoint.expected) - set(checkpoint.optional) == set(subject.tensors) - set(checkpoint.optional)
    quantized = {name for name, row in checkpoint.expected.items() if row.quantized}
    assert {name for name in subject.tensors if STORAGE.match(name.rpartition(".")[2])} <= quantized
    for name in quantized:
        form = checkpoint.expected[name].form
        assert form is not None
        assert (tuple(subject.tensors[name].shape), subject.tensors[name].dtype) == (form.shape, form.dtypes[0]), name


@pytest.mark.parametrize(("kind", "preset"), [row for row in SUBJECTS if row[0] == "dense"])
def test_bytes_of_a_weight_are_those_that_are_saved(kind: str, preset: str, make: Make) -> None:
    """All but the shape of packed codes, eight bytes or so that say what the model's configuration says."""
    subject = make(kind, preset)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    weights, activations = dump_args(scheme.weights), scheme.input_activations is not None
    assert weights is not None
    checked = 0
    for module in subject.card.model.modules:
        stored = {
            name: tensor
            for name, tensor in subject.tensors.items()
            if name.startswith(f"{module.name}.weight") and not name.endswith("weight_shape")
        }
        if module.weight_shape is None or set(stored) <= {f"{module.name}.weight"}:
            continue
        found = weight_bytes(module.weight_shape, weights, activations=activations)
        assert found == sum(tensor.nbytes for tensor in stored.values())
        checked += 1
    assert checked


def test_readings_that_are_reused_say_what_reading_anew_says(make: Make) -> None:
    subject = make("moe", "NVFP4")
    clean = made.marks(subject.audit())
    mutations = [*made.tensor_mutations(subject.tensors), *made.config_mutations(subject.config)]
    for mutation in random.Random(0).sample(mutations, CHECKED):
        fresh = replace(subject, readings=made.Readings())
        assert made.found(subject, mutation, clean) == made.found(fresh, mutation, clean), mutation.what


def test_nearly_every_mutation_is_found(make: Make) -> None:
    tried, survivors = 0, []
    for kind, preset in SUBJECTS:
        subject = make(kind, preset)
        clean = made.marks(subject.audit())
        mutations = [*made.tensor_mutations(subject.tensors), *made.config_mutations(subject.config)]
        if not ALL:
            mutations = random.Random(f"{kind} {preset}").sample(mutations, SAMPLE)
        tried += len(mutations)
        missed = [f"{subject.name}: {m.what}" for m in mutations if not made.found(subject, m, clean)]
        survivors += missed
        share = 1 - len(missed) / len(mutations)
        print(f"{subject.name}: {share:.1%} of {len(mutations)} mutations found", *missed, sep="\n  ", flush=True)
    print(f"{tried - len(survivors):,} of {tried:,} mutations found; the others:", *survivors, sep="\n")
    unexplained = [text for text in survivors if not any(re.search(pattern, text) for pattern in SURVIVORS)]
    assert unexplained == []
    assert len(survivors) <= 0.02 * tried
