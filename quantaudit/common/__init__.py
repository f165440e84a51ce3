"""What every room may use: files, resources, progress, logs. Knows nothing of models."""
