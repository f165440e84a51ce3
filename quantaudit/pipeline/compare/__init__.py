"""Comparing checkpoints: what is read, and the same held-out tokens through each of them."""
