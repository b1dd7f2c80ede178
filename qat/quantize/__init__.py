"""Quantization of a network: what is quantized and how, and what that comes to."""
