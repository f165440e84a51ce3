"""Quantization as the toolkit does it: schemes, scales and errors, thin over compressed_tensors."""
