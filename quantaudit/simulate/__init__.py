"""What quantizing would do: to each tensor (offline), to each decoder block (replay), to the whole model (logits)."""
