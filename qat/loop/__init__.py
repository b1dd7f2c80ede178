"""Quantization brought into other loops: a plain one, and any LightningModule's."""
