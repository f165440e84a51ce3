"""Running a loaded model: batches, attention, arithmetic, and taps on its tensors."""
