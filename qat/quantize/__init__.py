"""A network made low-bit: what is quantized and how, and what that comes to."""
