"""Checkpoints and their tensors: loading, naming what is observed, and tapping it while somebody runs the forward."""
