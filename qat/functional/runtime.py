"""Runtime of the quantizers: how they are computed, not what. Process-wide, as torch's threads are.

What may differ in its last bits, each option says.
"""

from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, get_args

from qat.errors import SpecError
from qat.names import Backward, IntegerForward, KernelKind, MemoryFormat, Saved

_CHOICES: dict[str, Any] = {
    "kernels": KernelKind,
    "saved": Saved,
    "integer_forward": IntegerForward,
    "backward": Backward,
    "memory_format": MemoryFormat,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How quantizers are computed.

    Attributes:
        kernels: eager operations of torch, or fused, one loop each for forward and backward, made
            by Inductor. Values and gradients in x are the same bit for bit; the gradients of steps
            are sums that the two add up in different orders.
        saved: what a layer keeps of a quantized input for its backward pass: its codes, a byte
            each, or the floats. Both give the same bits.
        integer_forward: which layers whose operands are both codes multiply and add integers, by
            int8 operators: none (off), those where it pays by a rule of shapes (auto), or all (on).
            The sums are exact and rounded once, where those of floats are rounded at each addition:
            last bits differ.
        memory_format: in which integer convolutions answer; contiguous, as float ones do: in that
            of their operands.
        backward: precision in which these layers compute gradients. bf16 rounds what comes from
            above to bfloat16, and the results; codes are exact in it.
    """

    kernels: KernelKind = "eager"
    saved: Saved = "codes"
    integer_forward: IntegerForward = "off"
    backward: Backward = "float32"
    memory_format: MemoryFormat = "contiguous"

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            choices = get_args(kind)
            if getattr(self, name) not in choices:
                raise SpecError(
                    f"runtime.{name} must be {' or '.join(choices)}; got {getattr(self, name)!r}"
                )


_current = Runtime()


def runtime() -> Runtime:
    """The runtime in force."""
    return _current


class set_runtime:  # noqa: N801  a verb, as torch.set_grad_enabled is
    """Set options of the runtime: at once, and as a context manager until its end.

    Args:
        kernels: see `Runtime`; None leaves it as it is. So for the others.
        saved: see `Runtime`.
        integer_forward: see `Runtime`.
        backward: see `Runtime`.
        memory_format: see `Runtime`.

    Raises:
        SpecError: no such choice.

    >>> with set_runtime(saved="floats"):
    ...     runtime().saved
    'floats'
    >>> runtime().saved
    'codes'
    """

    def __init__(
        self,
        *,
        kernels: KernelKind | None = None,
        saved: Saved | None = None,
        integer_forward: IntegerForward | None = None,
        backward: Backward | None = None,
        memory_format: MemoryFormat | None = None,
    ) -> None:
        global _current
        self._before = _current
        asked: dict[str, Any] = {
            "kernels": kernels,
            "saved": saved,
            "integer_forward": integer_forward,
            "backward": backward,
            "memory_format": memory_format,
        }
        _current = replace(_current, **{k: v for k, v in asked.items() if v is not None})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _current
        _current = self._before
