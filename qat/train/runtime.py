"""Runtime of a run: how its quantized layers are computed, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from qat.errors import SpecError, shown
from qat.functional import int8
from qat.functional.runtime import set_runtime
from qat.functional.staircase import staircase_ste
from qat.functional.stairs import relu_stairs
from qat.lit.processes import device_type
from qat.names import KernelKind
from qat.nn.activation import QuantizedActivation
from qat.quantize.modes import evaluating
from qat.spec.run import RunSpec, RuntimeSpec
from qat.train.build import Built

# of activations in a run's quantized steps: compiling costs what so many cost more in eager kernels
LONG = 10**10


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for an option of `runtime`.

    Attributes:
        option: its name.
        value: as the status of the run keeps it.
        reason: why, for the run's first lines.
    """

    option: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.option.replace('_', ' ')}: {self.value}, {self.reason}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """How a run's quantized layers are computed; no choice where it quantizes no activation."""

    choices: tuple[Choice, ...] = field(default=())

    def lines(self) -> list[str]:
        """For the run's first lines."""
        return [str(choice) for choice in self.choices]

    def values(self) -> dict[str, str]:
        """Option -> what was chosen."""
        return {choice.option: choice.value for choice in self.choices}


def begin_runtime(spec: RunSpec, built: Built, *, before: Mapping[str, str]) -> Chosen:
    """Set the runtime of this process for a run.

    Args:
        spec: the run's options.
        built: its network and data.
        before: how an interrupted run was computed, which auto goes on with.

    Raises:
        SpecError: what is asked for is not possible here.
    """
    options, is_compiled = spec.runtime, spec.training.compile
    set_runtime(
        kernels="eager",
        saved=options.saved,
        integer_forward="off",
        backward=options.backward,
        memory_format=options.memory_format,
    )
    each = quantized_values(built)
    if not each:
        return Chosen()
    values = each * _images(spec, built)
    device = torch.device(device_type(spec.trainer.get("accelerator", "auto")))
    kernels = kernels_of(options, values, compiled=is_compiled, before=before.get("kernels"))
    if kernels.value == "fused" and (why := _reason_against(device)):
        if options.kernels == "fused":
            raise SpecError(
                f"runtime.kernels=fused: Inductor cannot compile here ({why}); install a C++ "
                "compiler (on a GPU: Triton), or use runtime.kernels=eager"
            )
        kernels = Choice("kernels", "eager", f"as Inductor cannot compile here ({why})")
    integers = integers_of(
        options, device, compiled=is_compiled, before=before.get("integer_forward")
    )
    kind: KernelKind = "fused" if kernels.value == "fused" else "eager"
    set_runtime(kernels=kind, integer_forward=integers.value)  # type: ignore[arg-type]
    how = Choice("backward", options.backward, "in layers of codes")
    return Chosen((kernels, integers, *([how] if options.backward != "float32" else [])))


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
    epochs = spec.trainer["max_epochs"] - spec.warm_epochs
    return int(epochs * built.data.batches_per_epoch * spec.data.batch_size)


def kernels_of(options: RuntimeSpec, values: int, *, compiled: bool, before: str | None) -> Choice:
    """The kernels of a run, were this machine able to compile.

    Args:
        options: the config group `runtime`.
        values: activations to quantize in the whole run.
        compiled: whether the network is compiled.
        before: kernels that an interrupted run was trained with.
    """
    if compiled:
        return Choice("kernels", "eager", "inside of the compiled network, which fuses them")
    if options.kernels != "auto":
        return Choice("kernels", options.kernels, f"by runtime.kernels={options.kernels}")
    if before in get_args(KernelKind):
        return Choice("kernels", str(before), "as the run began with")
    size = f"{values:.1e} activations to quantize"
    if values >= LONG:
        return Choice("kernels", "fused", f"for {size} (auto: from {LONG:.0e} on)")
    return Choice("kernels", "eager", f"for {size} (auto: fused from {LONG:.0e} on)")


def integers_of(
    options: RuntimeSpec, device: torch.device, *, compiled: bool, before: str | None
) -> Choice:
    """Which layers whose operands are both codes are summed in integers.

    Args:
        options: the config group `runtime`.
        device: of the network.
        compiled: whether the network is compiled.
        before: auto, on or off, as an interrupted run was trained.

    Raises:
        SpecError: runtime.integer_forward=on where it is not possible.
    """
    asked = options.integer_forward
    why = _reason_against_integers(device, compiled=compiled)
    if asked == "on" and why:
        raise SpecError(f"runtime.integer_forward=on: {why}; use runtime.integer_forward=off")
    if asked != "auto":
        return Choice("integer_forward", asked, f"by runtime.integer_forward={asked}")
    if before == "off":
        return Choice("integer_forward", "off", "as the run began with")
    if why:
        return Choice("integer_forward", "off", f"as {why}")
    if before in ("auto", "on"):
        return Choice("integer_forward", str(before), "as the run began with")
    if device.type != "cpu":
        return Choice("integer_forward", "off", "as nobody has measured it on GPUs")
    if not int8.is_fast():
        return Choice("integer_forward", "off", "as this CPU has no instructions for int8 sums")
    return Choice("integer_forward", "auto", "in layers of codes where it pays")


def _reason_against_integers(device: torch.device, *, compiled: bool) -> str:
    """Why int8 operators cannot be used; empty if they can."""
    if compiled:
        return "a compiled network multiplies floats"
    return int8.reason_against(device.type)


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
