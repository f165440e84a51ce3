"""Quantized artifacts as libraries save them, read into one record: which scales they hold, and which they lack."""
