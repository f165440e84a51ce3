"""Mergeable statistics: states are counts, extremes and top-k, never means, so that shards add up to the same bytes."""
