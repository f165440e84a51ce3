"""A recipe of several schemes, chosen by a card alone, run by llm-compressor: it saves what was promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from quantaudit.advise.allocate import allocate
from quantaudit.advise.budget import Budget
from quantaudit.pipeline.advise import write_allocation
from quantaudit.policy import load_policy
from tests.builders import random_corpus, save_checkpoint, tiny_model
from tests.llm_compressor import quantized_checkpoint
from tests.priced_cards import priced

NOT_WEIGHTS = ("weight_shape", "input_global_scale", "input_scale")
"""What says how many columns packed codes have, and what belongs to inputs."""


@pytest.mark.parametrize(("bits", "unquantized"), [(5.0, False), (9.0, True)])
def test_llm_compressor_saves_the_schemes_and_the_bytes_that_were_chosen(
    tmp_path: Path, bits: float, unquantized: bool
) -> None:
    model = tiny_model("llama")
    source = save_checkpoint(tmp_path / "model", model)
    card = priced(seed=2)
    card = card.model_copy(update={"model": card.model.model_copy(update={"parameters": model.num_parameters()})})
    policy = load_policy("default")
    result = write_allocation(allocate(card, Budget(max_bits=bits), policy, unquantized=unquantized), "", policy)
    allocation = result.allocation
    assert len(set(allocation.point.schemes.values())) > 1

    samples = random_corpus([32, 32]).samples
    saved = quantized_checkpoint(source, tmp_path / "saved", result.text, samples)
    stored: dict[str, int] = {}
    for file in saved.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            stored |= {name: tensors.get_tensor(name).nbytes for name in tensors.keys()}  # noqa: SIM118
    kept = {name: size for name, size in stored.items() if not name.endswith(NOT_WEIGHTS)}
    assert sum(kept.values()) == allocation.point.size

    ignored = set(json.loads((saved / "config.json").read_text())["quantization_config"]["ignore"])
    for unit in allocation.menu.units:
        scheme = allocation.point.schemes[unit.groups[0]]
        members = [member for group in unit.groups for member in allocation.menu.members[group]]
        size = sum(bytes_ for name, bytes_ in kept.items() if name.rpartition(".")[0] in members)
        assert size == unit.sizes[unit.schemes.index(scheme)]
        assert {member in ignored for member in members} == {scheme is None}
