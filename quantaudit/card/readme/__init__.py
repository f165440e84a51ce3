"""The card as one section of a model repository's README.md: short, between two comments, with its files next to it."""
