"""A card as large as they get: 64 layers under ten schemes, with or without 128 experts in each.

python -m tests.large_card [RUNS]      renders it in fresh processes, and prints the time and the size of the page
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from quantaudit.card.schema import Card, ExpertLayer, ExpertsInfo, dump_card
from quantaudit.card.views.inspector.inspection import OBSERVERS
from tests.card_factory import STATIC, make_card

LAYERS, EXPERTS, SCHEMES = 64, 128, 8
"""SCHEMES: in addition to those that every card of the tests has."""


def large_card(experts: int = EXPERTS) -> Card:
    """One with every group under every scheme, and every input under every observer."""
    card = make_card(LAYERS)
    simulation = card.simulation
    assert simulation is not None
    titled = {f"scheme_{i}": f"A scheme with a title as long as those are, {i}" for i in range(SCHEMES)}
    infos = [simulation.schemes[0].model_copy(update={"name": name, "title": title}) for name, title in titled.items()]
    unpriced = {"damage": None, "damage_weights_only": None}
    groups = [
        row.model_copy(update={"scheme": name, **unpriced})
        for row in simulation.groups
        if row.scheme == STATIC
        for name in titled
    ]
    clips = [row.model_copy(update={"observer": name}) for row in simulation.sites for name in list(OBSERVERS)[1:]]
    changes = {
        "schemes": [*simulation.schemes, *infos],
        "groups": [*simulation.groups, *groups],
        "sites": [*simulation.sites, *clips],
    }
    rows = [1.0 / (3 + index) for index in range(experts)]
    layers = [
        ExpertLayer(
            name=f"layers.{layer}.mlp.experts",
            layer=layer,
            tokens=[100] * experts,
            amax={"gate_up_proj": rows, "down_proj": rows},
            amax_all_tokens={},
        )
        for layer in range(LAYERS)
    ]
    info = ExpertsInfo(enough=16, layers=layers, calibration="", reading="") if experts else None
    return card.model_copy(update={"simulation": simulation.model_copy(update=changes), "experts": info})


def main(runs: int = 5) -> None:
    """Print what rendering takes."""
    with tempfile.TemporaryDirectory() as folder:
        card, page = Path(folder, "card.json"), Path(folder, "page")
        card.write_text(dump_card(large_card()), encoding="utf-8")
        command = [sys.executable, "-m", "quantaudit", "render", str(card), "--out", str(page), "--force"]
        times = []
        for _ in range(runs + 1):
            start = perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(perf_counter() - start)
        size = (page / "card.html").stat().st_size
    first, *times = times  # which may have had scripts to bundle
    spread = f"median {median(times):.2f} s ({min(times):.2f} to {max(times):.2f}), {first:.2f} s the first"
    print(f"quantaudit render, {LAYERS} layers × {EXPERTS} experts: {spread}; card.html {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
