"""Runtime of a run: which kernels compute its quantizers, and why."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from qat.errors import SpecError, shown
from qat.functional.runtime import set_runtime
from qat.functional.staircase import staircase_ste
from qat.functional.stairs import relu_stairs
from qat.names import KernelKind
from qat.nn.activation import QuantizedActivation
from qat.quantize.modes import evaluating
from qat.spec.run import RunSpec, RuntimeSpec
from qat.train.build import Built

# of activations in a run's quantized steps: compiling costs what so many cost more in eager kernels
LONG = 10**10


@dataclass(frozen=True, slots=True)
class Kernels:
    """Which kernels a run takes.

    Attributes:
        kind: eager or fused.
        reason: why, for the run's first lines.
    """

    kind: KernelKind
    reason: str

    def __str__(self) -> str:
        return f"kernels: {self.kind}, {self.reason}"


def begin_runtime(spec: RunSpec, built: Built, *, before: str | None) -> Kernels | None:
    """Set the runtime of this process for a run; None if the run quantizes no activation.

    Args:
        spec: the run's options.
        built: its network and data.
        before: kernels that an interrupted run was trained with, which auto goes on with.

    Raises:
        SpecError: fused kernels are asked for and cannot be compiled.
    """
    set_runtime(kernels="eager", saved=spec.runtime.saved)
    each = quantized_values(built)
    if not each:
        return None
    values = each * _images(spec, built)
    kernels = chosen(spec.runtime, values, compiled=spec.training.compile, before=before)
    if kernels.kind == "fused" and (why := _reason_against(built.example.device)):
        if spec.runtime.kernels == "fused":
            raise SpecError(
                f"runtime.kernels=fused: Inductor cannot compile here ({why}); install a C++ "
                "compiler (on a GPU: Triton), or use runtime.kernels=eager"
            )
        kernels = Kernels("eager", f"as Inductor cannot compile here ({why})")
    set_runtime(kernels=kernels.kind)
    return kernels


@torch.no_grad()
def quantized_values(built: Built) -> int:
    """Number of activations that are quantized for one image."""
    count = 0

    def counting(module: QuantizedActivation, args: object, output: Tensor) -> None:
        nonlocal count
        count += output.numel()

    quantizers = [m for m in built.net.modules() if isinstance(m, QuantizedActivation)]
    hooks = [m.register_forward_hook(counting) for m in quantizers]
    try:
        with evaluating(built.net):
            built.net(built.example)
    finally:
        for hook in hooks:
            hook.remove()
    return count // len(built.example)


def _images(spec: RunSpec, built: Built) -> int:
    """Training images of the run's quantized steps."""
    epochs = spec.trainer["max_epochs"] - spec.warm_start.epochs
    return int(epochs * built.data.batches_per_epoch * spec.data.batch_size)


def chosen(spec: RuntimeSpec, values: int, *, compiled: bool, before: str | None) -> Kernels:
    """The kernels of a run, were this machine able to compile.

    Args:
        spec: the config group `runtime`.
        values: activations to quantize in the whole run.
        compiled: whether the network is compiled.
        before: kernels that an interrupted run was trained with.
    """
    if compiled:
        return Kernels("eager", "inside of the compiled network, which fuses them")
    if spec.kernels != "auto":
        return Kernels(spec.kernels, f"by runtime.kernels={spec.kernels}")
    if before in get_args(KernelKind):
        return Kernels(before, "as the run began with")  # type: ignore[arg-type]
    size = f"{values:.1e} activations to quantize"
    if values >= LONG:
        return Kernels("fused", f"for {size} (auto: from {LONG:.0e} on)")
    return Kernels("eager", f"for {size} (auto: fused from {LONG:.0e} on)")


def _reason_against(device: torch.device) -> str:
    """Why Inductor cannot compile for this device; empty if it has just done so."""
    x, alpha = torch.randn(64, device=device), torch.ones((), device=device)
    try:
        with set_runtime(kernels="fused"):
            y = staircase_ste(x.requires_grad_(), alpha.requires_grad_(), stairs=relu_stairs(4))
            torch.autograd.grad(y.sum(), (x, alpha))
    except Exception as error:  # whatever a compiler, or its absence, comes to
        return shown(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
    return ""
