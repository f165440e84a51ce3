"""Quantization as compressed-tensors does it: schemes, scales and errors, thin over its functions."""
