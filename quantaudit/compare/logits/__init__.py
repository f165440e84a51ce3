"""Two checkpoints on the same tokens: how far apart their next-token distributions are, and whether that is too far."""
