"""Where a sum of integers is faster than one of floats: a rule of shapes alone.

A rule, and no measurement, so that a run's bits depend on its machine's kind and not on its load.
"""

import torch
from torch import Tensor

from qat.functional.int8 import Conv, Linear, is_fast
from qat.functional.runtime import runtime

# ns per output value, on an Intel Xeon with AMX by two threads
_PER_TERM = 0.007  # what a float sum takes more
_WRITTEN = 0.3  # what the integer one takes more
_REORDERED = 0.9  # the same where its result is turned into another layout
_PACKED = 1.4  # per weight, into the operator's form
_CALLS = 250_000  # per layer: making codes of a weight, packing and its calls, whatever the size


def is_faster_in_int8(product: Conv | Linear, x: Tensor, w: Tensor) -> bool:
    """Whether an integer sum takes less time than one of floats.

    True where a float sum of n terms loses more than what integers cost beside their sum: the
    result's layout, and making and packing the weight's codes, which change at each step, shared by
    all positions at which a weight is used. Never on GPUs, on CPUs without instructions for it, and
    under autocast, where bfloat16 products are as fast.

    The same with gradients and without: a checkpointed block is computed both ways.

    Args:
        product: its numbers.
        x: input.
        w: weight.
    """
    if not x.is_cpu or not is_fast() or torch.is_autocast_enabled("cpu"):
        return False
    terms = w[0].numel()
    is_reordered = isinstance(product, Conv) and not answers_in_channels_last(x, w)
    gain = _PER_TERM * terms - (_REORDERED if is_reordered else _WRITTEN)
    places = positions(product, x, w)
    return gain * places * len(w) > _CALLS + _PACKED * w.numel()


def positions(product: Conv | Linear, x: Tensor, w: Tensor) -> int:
    """At how many places of the input each weight is multiplied; 0 or less if it fits nowhere."""
    if isinstance(product, Linear):
        return x.numel() // x.shape[-1]
    places = len(x)
    for axis in (0, 1):
        reach = product.dilation[axis] * (w.shape[2 + axis] - 1) + 1
        room = x.shape[2 + axis] + 2 * product.padding[axis] - reach
        places *= max(0, room // product.stride[axis] + 1)
    return places


def answers_in_channels_last(x: Tensor, w: Tensor) -> bool:
    """Whether a convolution's result lies in channels_last memory, as the operator gives it."""
    is_asked = runtime().memory_format == "channels_last"
    return is_asked or _is_channels_last(x) or _is_channels_last(w)


def _is_channels_last(x: Tensor) -> bool:
    """Whether x makes a float convolution answer in channels_last; one that is both does not."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
