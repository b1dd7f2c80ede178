"""Names that config and tensor code share; standard library only."""

from typing import Literal

Derivative = Literal[
    "identity",
    "relu",
    "clipped_relu",
    "log_tailed_relu",
    "reverse_exponential",
    "piecewise_quadratic",
    "tanh",
    "power",
    "periodic",
    "dsq",
    "swish_sign",
]
StepDerivative = Literal["exact", "three_valued", "two_valued"]
LogitLossName = Literal["mse", "kl", "none"]
FeatureLossName = Literal[
    "affinity", "projected_affinity", "hint", "attention", "similarity", "none"
]
Reduction = Literal["mean", "authors"]
Adapter = Literal["none", "conv", "conv_relu"]
KernelKind = Literal["eager", "fused"]
Saved = Literal["codes", "floats"]
Backward = Literal["float32", "bf16"]
IntegerForward = Literal["off", "auto", "on"]
MemoryFormat = Literal["contiguous", "channels_last"]
