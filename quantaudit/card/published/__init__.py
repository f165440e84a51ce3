"""Peaks that arXiv 2605.15572 publishes for its checkpoints: `peaks.json`, and the files that they were taken from."""
