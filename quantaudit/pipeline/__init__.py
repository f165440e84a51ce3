"""Workflows: a checkpoint and a corpus through measuring and simulation to a card. They print nothing."""
