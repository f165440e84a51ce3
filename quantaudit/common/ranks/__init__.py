"""Ranks: processes that share one run. `team` is all that other code knows of them; `processes` and `forked` join them."""
