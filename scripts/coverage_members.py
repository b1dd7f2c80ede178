"""The networks of `coverage.py`: of each module of timm one that is among its smallest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Member:
    """One network.

    Attributes:
        name: of timm or torchvision.
        family: its module of timm, or torchvision.
        pixels: height and width of its images.
        options: of torchvision's builder.
    """

    name: str
    family: str
    pixels: int
    options: Mapping[str, Any] = field(default_factory=dict)


_TIMM: tuple[tuple[str, str, int], ...] = (
    ("resnet", "resnet18", 96),
    ("dla", "dla34", 96),
    ("vision_transformer", "vit_tiny_patch16_224", 224),
)
_TORCHVISION = (("resnet18", 96),)
_WHOLE = {"googlenet": {"aux_logits": False, "init_weights": False}}
_WHOLE |= {"inception_v3": _WHOLE["googlenet"]}

MEMBERS = (
    *(Member(name, family, pixels) for family, name, pixels in _TIMM),
    *(Member(name, "torchvision", pixels, _WHOLE.get(name, {})) for name, pixels in _TORCHVISION),
)
