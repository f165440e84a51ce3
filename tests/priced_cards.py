"""Cards whose fused groups have random prices under several schemes, over real module trees."""

from __future__ import annotations

import numpy as np

from quantaudit.card.schema import Card
from quantaudit.simulate.records import SchemeInfo
from tests.recipe_cards import card_of, recipe_row

FP4 = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": 16,
    "scale_dtype": "torch.float8_e4m3fn",
}
SCHEMES = [
    SchemeInfo(name=name, title=name, weights=weights, input_activations=inputs, observer=observer)
    for name, weights, inputs, observer in (
        ("int8_weights", {"strategy": "channel"}, None, None),
        ("int8_static:minmax", {"strategy": "channel"}, {"strategy": "tensor", "observer": "static_minmax"}, "minmax"),
        ("int4_weights", {"num_bits": 4, "strategy": "group", "group_size": 32}, None, None),
        ("nvfp4", FP4, {**FP4, "dynamic": "local"}, "absolute_maximum"),
    )
]
SCALE = {"int8_weights": 1.0, "int8_static:minmax": 5.0, "int4_weights": 60.0, "nvfp4": 40.0}


def priced(family: str = "llama", seed: int = 0, card: Card | None = None) -> Card:
    """A card whose fused groups have random prices under four schemes, of which two were simulated everywhere.

    card: whose groups are taken, else those of a small model of a family.
    """
    card = card or card_of(family)
    assert card.simulation is not None
    rng = np.random.default_rng(seed)
    groups = {row.group: row for row in card.simulation.groups}.values()
    rows = [
        row.model_copy(update={"scheme": name, "price": scale * 1e-4 * rng.lognormal(0, 1)})
        for row in groups
        for name, scale in SCALE.items()
    ]
    inside = sum(row.layer is not None for row in groups)
    recipes = []
    for name in ("int8_weights", "nvfp4"):
        total = sum(row.price or 0.0 for row in rows if row.scheme == name and row.layer is not None)
        recipes.append(recipe_row(name, 1.1 * total, groups=inside, kl_estimate=total, kl_stderr=0.02 * total))
    simulation = card.simulation.model_copy(update={"schemes": SCHEMES, "groups": rows, "recipes": recipes})
    return card.model_copy(update={"simulation": simulation})
