"""Runtime of the quantizers: how they are computed, not what. Process-wide, as torch's threads are.

Nothing here changes a level or a gradient in x; what may differ in its last bits, each option says.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Self, get_args

from qat.errors import SpecError
from qat.names import KernelKind, Saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How quantizers are computed.

    Attributes:
        kernels: eager operations of torch, or fused, one loop each for forward and backward, made
            by Inductor. Values and gradients in x are the same bit for bit; the gradients of steps
            are sums that the two add up in different orders.
        saved: what a layer keeps of a quantized input for its backward pass: its codes, a byte
            each, or the floats. Both give the same bits.
    """

    kernels: KernelKind = "eager"
    saved: Saved = "codes"

    def __post_init__(self) -> None:
        for name, choices in (("kernels", get_args(KernelKind)), ("saved", get_args(Saved))):
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

    Raises:
        SpecError: no such choice.

    >>> with set_runtime(saved="floats"):
    ...     runtime().saved
    'floats'
    >>> runtime().saved
    'codes'
    """

    def __init__(self, *, kernels: KernelKind | None = None, saved: Saved | None = None) -> None:
        global _current
        self._before = _current
        before = self._before
        _current = Runtime(kernels=kernels or before.kernels, saved=saved or before.saved)

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
