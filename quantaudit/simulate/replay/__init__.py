"""Decoder blocks run again with one fused group quantized, and the backward pass that turns changes into nats."""
