"""Values of the operands of every product: a count that knows nothing of quantizers or names.

Each operator that multiplies is met while PyTorch dispatches it, and the values of its two tensors
are counted, nothing else. What the audit says of a network is held against this.
"""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass
class Count:
    """What one forward pass multiplied.

    Attributes:
        macs: multiply-accumulates, of all images together.
        few: those of them whose operands hold few values, both of them.
        weights: place in memory of each parameter that was multiplied -> its number of entries; of
            a convolution also a weight that is made of parameters, under a negative number; not a
            filter that is a buffer, which nobody trains.
        few_weights: those of them that hold few values in each row.
    """

    macs: int = 0
    few: int = 0
    weights: dict[int, int] = field(default_factory=dict)
    few_weights: dict[int, int] = field(default_factory=dict)

    @property
    def product_share(self) -> float:
        """Share of the multiply-accumulates that have two operands of few values, 0..1."""
        return self.few / max(1, self.macs)

    @property
    def parameter_share(self) -> float:
        """As `weight_share`, of parameters alone."""
        few = sum(count for place, count in self.few_weights.items() if place >= 0)
        return few / max(1, sum(count for place, count in self.weights.items() if place >= 0))

    @property
    def weight_share(self) -> float:
        """Share of the entries of multiplied parameters that hold few values, 0..1."""
        return sum(self.few_weights.values()) / max(1, sum(self.weights.values()))


@torch.no_grad()
def count_values(
    net: nn.Module, images: Tensor, *, weight_values: int = 2, input_values: int = 16
) -> Count:
    """Run a network once in eval mode and count the values of what it multiplies.

    Args:
        net: whose parameters hold hard weights.
        images: (N, C, H, W).
        weight_values: so many values in a row (axis 0) of a parameter are few.
        input_values: so many values of any other tensor are few.
    """
    found = Count()
    places = {p.untyped_storage().data_ptr(): p for p in net.parameters()}
    fixed = {b.untyped_storage().data_ptr() for b in net.buffers()}
    was_training = net.training
    net.eval()
    # fused attention and cells are one operator each, which shows no operands
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of oneDNN's flags
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=images.device.type != "cpu"),
            _Counter(found, places, fixed, weight_values, input_values),
        ):
            net(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        net.train(was_training)
    return found


class _Counter(TorchDispatchMode):
    def __init__(
        self,
        found: Count,
        places: dict[int, Tensor],
        fixed: set[int],
        weight_values: int,
        input_values: int,
    ) -> None:
        super().__init__()
        self._found, self._places, self._fixed = found, places, fixed
        self._most = (weight_values, input_values)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            x, w, transposed = args[0], args[1], args[6]
            places = math.prod(x.shape[2:] if transposed else out.shape[2:])
            self._add(x, w, x.shape[0] * places * w.numel())
            self._add_made(w)
        elif name in ("mm", "bmm"):
            self._add(args[0], args[1], args[0].numel() * args[1].shape[-1])
        elif name in ("addmm", "baddbmm", "addbmm"):
            self._add(args[1], args[2], args[1].numel() * args[2].shape[-1])
        elif name in ("mv", "dot", "vdot", "addmv"):
            # of a norm, as a rule: what it measures is no weight of the network
            self._found.macs += args[name == "addmv"].numel()
        return out

    def _add(self, a: Tensor, b: Tensor, macs: int) -> None:
        self._found.macs += macs
        first, second = self._is_few(a), self._is_few(b)  # both are looked at
        if first and second:
            self._found.few += macs

    def _add_made(self, weight: Tensor) -> None:
        """A convolution's weight counts even where it is no parameter but made of some."""
        place = weight.untyped_storage().data_ptr()
        if place not in self._places and place not in self._fixed:
            rows = weight.detach().reshape(len(weight), -1)
            key = -len(self._found.weights) - 1
            self._found.weights[key] = weight.numel()
            if all(len(torch.unique(row)) <= self._most[0] for row in rows):
                self._found.few_weights[key] = weight.numel()

    def _is_few(self, tensor: Tensor) -> bool:
        place = tensor.untyped_storage().data_ptr()
        parameter = self._places.get(place)
        if parameter is None:
            return len(torch.unique(tensor)) <= self._most[1]
        rows = parameter.detach().reshape(parameter.shape[0] if parameter.ndim else 1, -1)
        is_few = all(len(torch.unique(row)) <= self._most[0] for row in rows)
        self._found.weights[place] = parameter.numel()
        if is_few:
            self._found.few_weights[place] = parameter.numel()
        return is_few
