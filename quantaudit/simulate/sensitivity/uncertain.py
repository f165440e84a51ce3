"""The few prices that chance of the drawn labels decides: their groups are simulated alone, and priced by that.

Where the error of a group sits on a few tokens, as on the first one, which all others attend to, its price is the
square of a few numbers that were drawn. Such changes are large, too, and the second order may be far off there. Most
groups of a large model are certain enough; a pass each is spent on those that decide what a scheme costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantaudit.simulate.experiment import Experiment
    from quantaudit.simulate.group_effect import GroupEffect
    from quantaudit.simulate.logits.rounding_floor import RoundingFloor

MATTERS = 0.01
"""Standard error of a price, of the sum over all groups under its scheme, from which on it is simulated."""
MOST = 8
"""Groups, over all schemes, that are simulated for it: those that matter most."""


def uncertain(experiment: Experiment, effects: Sequence[GroupEffect], floor: RoundingFloor) -> list[GroupEffect]:
    """Effects on the experiment's groups whose prices are left to chance where they matter, the most uncertain first.

    What the rounding floor hides is left out: the KL of a group simulated alone tells no less of it.
    """
    names = {group.name for group in experiment.groups}
    priced = [effect for effect in effects if effect.price is not None and effect.group.name in names]
    sums: defaultdict[str, float] = defaultdict(float)
    for effect in priced:
        sums[effect.scheme.name] += effect.price or 0.0
    shares = {
        effect.key: stderr / sums[effect.scheme.name]
        for effect in priced
        if (stderr := effect.price_stderr or 0.0) > floor.at(effect.group.layer or 0)
    }
    chosen = [effect for effect in priced if shares.get(effect.key, 0.0) > MATTERS]
    return sorted(chosen, key=lambda effect: -shares[effect.key])[:MOST]


def price_by_kl(effects: Sequence[GroupEffect], floor: RoundingFloor) -> None:
    """Replace prices by the KL of the group simulated alone, less the floor that any change at its depth costs.

    What has no finite KL keeps its price.
    """
    for effect in effects:
        if effect.kl is not None and effect.group.layer is not None:
            effect.price, effect.price_simulated = max(effect.kl - floor.at(effect.group.layer), 0.0), True
