"""The table of simulated recipes in a terminal."""

from __future__ import annotations

from quantaudit.cli.console import recipe_table
from tests.priced_cards import priced
from tests.recipe_cards import recipe_row


def test_a_measured_number_ends_in_its_zeros() -> None:
    simulation = priced().simulation
    assert simulation is not None
    rows = [recipe_row(name, kl, kl_stderr=error) for name, kl, error in (("a", 0.1, 0.02), ("b", 0.0684, None))]
    table = recipe_table(simulation.model_copy(update={"recipes": [*rows, recipe_row("c", None)]}))
    assert list(table.columns[1].cells) == ["0.100 ± 0.02", "0.0684", "—"]
