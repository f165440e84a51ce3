"""How often labels are drawn for each evaluation sample, and gradients taken from them, before prices are averaged.

A token that all later ones attend to, as the first one often is, counts once for each sample and draw: a change there
is priced by the square of one number, which varies as χ² of one degree of freedom does. Few samples need more draws.
"""

MOST = 6
"""Draws; more hardly change a price (docs/prediction.md)."""
TOKENS = 8192
"""Tokens that labels are drawn for, all draws together, where there are that many samples to draw for anyway."""


def draws_for(tokens: int) -> int:
    """Backward passes for each sample, of so many evaluation tokens together."""
    return max(1, min(MOST, TOKENS // max(tokens, 1)))
