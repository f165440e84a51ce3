"""Prices of fused groups in nats, and what they sum to for a recipe."""
