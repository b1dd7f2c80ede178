"""Frozen teacher: a network that is asked, and never trained or saved."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat.distill.tap import FeatureTap


@dataclass(frozen=True, slots=True)
class Answer:
    """What a teacher says about a batch.

    Attributes:
        logits: (N, K).
        maps: feature maps (N, C, H, W), one per tapped layer.
    """

    logits: Tensor
    maps: list[Tensor]


class Teacher:
    """A frozen network in eval mode, asked without gradients and in one pass.

    It is no module, so that a student that holds one does not train it, move it into training
    mode, or save it.

    Args:
        net: the network; frozen and set to eval mode here.
        layers: dotted names of the modules to tap.
        origin: where it comes from, for records.

    Attributes:
        sha256: of the network's state, see `state_hash`.
        origin: as given.

    Raises:
        SpecError: a layer is no module of the network.
    """

    def __init__(self, net: nn.Module, *, layers: Sequence[str] = (), origin: str = "") -> None:
        self.net = net.eval().requires_grad_(False)
        self.layers = tuple(layers)
        self.origin = origin
        self.sha256 = state_hash(net)
        self._tap = FeatureTap(net, layers)

    @torch.no_grad()
    def ask(self, images: Tensor) -> Answer:
        """Logits and feature maps of a batch (N, C, H, W), with the network on its device."""
        self.net.to(images.device)
        with self._tap as tap:
            logits: Tensor = self.net(images)
            return Answer(logits, tap.take())


def state_hash(net: nn.Module) -> str:
    """Sha256 over names, types, shapes and bytes of all parameters and buffers, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(data.numpy()))
    return digest.hexdigest()
