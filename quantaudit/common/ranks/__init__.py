"""Ranks: processes that share one run. Other code knows `team` alone; `processes` and `forked` join them."""
