"""Recipes and what they made: whether one is safe on a measured model, and whether an artifact agrees with its card."""
