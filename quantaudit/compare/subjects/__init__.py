"""What is compared: cards and published checkpoints, in one form."""
