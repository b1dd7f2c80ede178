"""Contenders of the benchmark: networks with their optimizers, each trained in its own way."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qat import QuantOptimizer, QuantSpec, bcgd, parameter_groups, prepare, set_runtime
from qat.errors import SpecError
from qat.models.small import CifarResNet
from qat.peers.methods import peer_of
from qat.quantize.calibrate import start_steps
from qat.quantize.plan import weight_projections

Layout = Literal["nchw", "channels_last"]


@dataclass(frozen=True, slots=True)
class Network:
    """A network and the batch that it is trained on.

    Attributes:
        make: float network of ten classes.
        batch: images (N, 3, H, W).
    """

    make: Callable[[], nn.Module]
    batch: tuple[int, int, int, int]


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        net: nn.Module = getattr(torchvision.models, name)(num_classes=10)
        return net

    return make


def _small_vit() -> nn.Module:
    import timm

    net: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=10
    )
    return net


def _resnet20(width: int) -> Network:
    return Network(lambda: CifarResNet(20, num_classes=10, width=width), (128, 3, 32, 32))


NETWORKS = {
    "resnet20": _resnet20(16),
    "resnet20x2": _resnet20(32),
    "resnet20x4": _resnet20(64),
    "resnet18": Network(_torchvision("resnet18"), (32, 3, 64, 64)),
    "resnet18_224": Network(_torchvision("resnet18"), (32, 3, 224, 224)),
    "mobilenet_v2": Network(_torchvision("mobilenet_v2"), (32, 3, 64, 64)),
    "vit_tiny": Network(_small_vit, (32, 3, 64, 64)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to train a network.

    Attributes:
        title: for tables.
        base: mode of the float network that it is measured against.
        is_float: whether nothing is quantized.
        runtime: options of `qat.set_runtime`.
        compiled: whether the network is compiled.
        bf16: whether autocast computes in bfloat16.
        peer: method of another package; "naive" for the textbook's own.
        start_batches: batches in which a peer collects statistics.
    """

    title: str
    base: str = "float"
    is_float: bool = False
    runtime: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False
    bf16: bool = False
    peer: str = ""
    start_batches: int = 1


_FUSED = {"kernels": "fused", "saved": "codes"}
_INTEGERS = {**_FUSED, "integer_forward": "auto"}
MODES = {
    "float": Mode(title="float", is_float=True),
    "float_compiled": Mode(title="float, compiled", is_float=True, compiled=True),
    "float_bf16": Mode(title="float, bf16", is_float=True, bf16=True, base="float_bf16"),
    "eager_floats": Mode(title="eager, floats kept", runtime={"saved": "floats"}),
    "eager": Mode(title="eager, codes kept", runtime={"saved": "codes"}),
    "fused_floats": Mode(title="fused, floats kept", runtime={**_FUSED, "saved": "floats"}),
    "fused": Mode(title="fused, codes kept", runtime=_FUSED),
    "integers": Mode(title="int8 forward", runtime=_INTEGERS),
    "integers_eager": Mode(
        title="int8 forward, eager kernels", runtime={**_INTEGERS, "kernels": "eager"}
    ),
    "integers_bf16": Mode(
        title="int8 forward, bf16 backward", runtime={**_INTEGERS, "backward": "bf16"}
    ),
    "compiled": Mode(title="compiled network", compiled=True),
    "bf16_eager": Mode(title="bf16, eager", bf16=True, base="float_bf16"),
    "bf16": Mode(title="bf16, fused, codes kept", bf16=True, runtime=_FUSED, base="float_bf16"),
    "bf16_integers": Mode(
        title="bf16, int8 forward",
        bf16=True,
        runtime={**_INTEGERS, "integer_forward": "on"},
        base="float_bf16",
    ),
    "naive": Mode(title="textbook Function", peer="naive"),
    "brevitas_first": Mode(title="Brevitas, statistics", peer="brevitas", start_batches=10**6),
    "brevitas": Mode(title="Brevitas, after statistics", peer="brevitas"),
    "parq": Mode(title="torchao PARQ, weights alone", peer="parq_w1a32"),
    "fake_quantize": Mode(title="torch.ao FakeQuantize, W4A4", peer="torch_ao_w4a4"),
}


class Contender:
    """A network in training, in its mode and layout.

    Args:
        network: its name.
        quant: options, or None for a float network.
        mode: how it is trained.
        layout: of images, and of weights that are not ours.
        batch: images; None for the network's own number.
    """

    def __init__(
        self,
        network: str,
        quant: QuantSpec | None,
        mode: Mode,
        layout: Layout,
        *,
        batch: int | None = None,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(0)
        self.mode, self.device = mode, device
        self._runtime = {
            "kernels": "eager",
            "integer_forward": "off",
            "memory_format": "channels_last" if layout == "channels_last" else "contiguous",
            **mode.runtime,
        }
        own = NETWORKS[network]
        shape = (batch or own.batch[0], *own.batch[1:])
        self.net = own.make().to(device)
        memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.image = torch.randn(shape, device=device).to(memory_format=memory)
        self.label = torch.randint(10, shape[:1], device=device)
        self.optimizer = self._optimizer(quant, memory)
        if mode.compiled:
            self.net.compile(fullgraph=True)

    def _optimizer(self, quant: QuantSpec | None, memory: torch.memory_format) -> Any:
        quant = None if self.mode.is_float else quant
        is_ours = quant is not None and not self.mode.peer
        if is_ours:
            assert quant is not None
            prepare(self.net, quant, example=self.image[:2])
            start_steps(self.net, quant, [self.image])
        elif self.mode.peer == "naive":
            make_naive(self.net)
        peer = None
        if self.mode.peer not in ("", "naive"):
            assert quant is not None
            peer = peer_of(_method(self.mode.peer, quant))
            peer.convert(self.net, self.mode.start_batches)
        if not is_ours:  # as runs have it: images alone, and layers answer as they are asked
            self.net.to(memory_format=memory)  # type: ignore[call-overload]
        groups = parameter_groups(
            self.net.named_parameters(), lr=0.01, weight_decay=1e-4, step_rate=0.01
        )
        base = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
        if peer is not None:
            return peer.wrap(base, 1000)
        if is_ours:
            assert quant is not None
            return QuantOptimizer(base, weight_projections(self.net, quant), bcgd())
        return base

    def forward(self) -> Tensor:
        """Loss of the batch."""
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16) if self.mode.bf16 else contextlib.nullcontext():
            logits = self.net(self.image)
        return F.cross_entropy(logits.float(), self.label)

    def step(self) -> tuple[float, float, float]:
        """Seconds of forward, backward and optimizer of one training step."""
        with set_runtime(**self._runtime):
            times = [self._now()]
            loss = self.forward()
            times.append(self._now())
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            times.append(self._now())
            self.optimizer.step()
            times.append(self._now())
        return times[1] - times[0], times[2] - times[1], times[3] - times[2]

    def saved_bytes(self) -> int:
        """Bytes of different memory that one forward pass keeps for backward, without weights."""
        weights = {p.untyped_storage().data_ptr() for p in self.net.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            set_runtime(**self._runtime),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            loss = self.forward()
        total = sum(kept.values())
        del loss
        return total

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _method(peer: str, quant: QuantSpec) -> str:
    if peer != "brevitas":
        return peer
    if quant.weight.bits not in (1, 4) or quant.activation.bits != 4:
        raise SpecError(f"no peer has W{quant.weight.bits}A{quant.activation.bits} here")
    return f"brevitas_w{quant.weight.bits}a4"


# -- the textbook's straight-through estimator, as most code has it --------------------------------


def make_naive(net: nn.Module) -> None:
    """sign(w) mean|w| and four-bit ReLUs by the textbook's Functions, in every layer."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, _NaiveRelu())
            elif isinstance(child, nn.Conv2d | nn.Linear):
                torch.nn.utils.parametrize.register_parametrization(child, "weight", _NaiveSign())


class _NaiveSign(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return _Sign.apply(w) * w.detach().abs().mean()  # type: ignore[no-any-return]


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return torch.where(w >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return grads[0] * (w.abs() <= 1)


class _NaiveRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return _Round.apply((x.relu() / self.step).clamp(0, 15)) * self.step  # type: ignore[no-any-return]


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]
