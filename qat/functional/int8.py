"""Products of codes by int8 operators that torch carries: oneDNN's on CPUs, cuBLAS's on GPUs.

The operators are torch's own but not part of its documented interface: whether they are there, and
compute what they should on this machine, is asked of them once, on products whose sums are known.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_ops: Any = torch.ops.onednn

# instructions without which sums of int8 products are no faster than floats
_FAST = ("avx512_vnni", "avx_vnni", "amx_int8")


@dataclass(frozen=True, slots=True)
class Conv:
    """A two-dimensional convolution: its numbers, as torch's functions have them.

    Attributes:
        stride, padding, dilation: for height and width.
        groups: 1 or more.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def packed(self, codes: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
        """Weight codes as the operator wants them, for inputs of this shape."""
        result: Tensor = _ops.qconv_prepack(
            codes, scale, 1.0, 0, self.stride, self.padding, self.dilation, self.groups, shape
        )
        return result

    def __call__(
        self,
        codes: Tensor,
        zero_point: int,
        packed: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """sum((codes - zero_point) * weight codes) * scale + bias, in channels_last memory.

        Args:
            codes: uint8 (N, C, H, W).
            zero_point: the byte of code 0; padding is of code 0.
            packed: weight codes.
            scale: float32 (1,) or (O,).
            bias: float32 (O,) or None.
            dtype: of the result, float32 or bfloat16.
        """
        result: Tensor = _ops.qconv2d_pointwise(
            codes.contiguous(memory_format=torch.channels_last), 1.0, zero_point, packed, scale,
            _zeros(len(scale)), bias, self.stride, self.padding, self.dilation, self.groups,
            1.0, 0, dtype, "none", [], "",
        )  # fmt: skip
        return result


@dataclass(frozen=True, slots=True)
class Linear:
    """A product with the rows of a matrix, for inputs of any number of axes."""

    def packed(self, codes: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
        """Weight codes as the operator wants them, for inputs of this shape."""
        result: Tensor = _ops.qlinear_prepack(codes.contiguous(), shape)  # it reads no strides
        return result

    def __call__(
        self,
        codes: Tensor,
        zero_point: int,
        packed: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """See `Conv`; codes (..., I), result (..., O)."""
        result: Tensor = _ops.qlinear_pointwise(
            codes.contiguous(), 1.0, zero_point, packed, scale, _zeros(len(scale)), bias,
            1.0, 0, dtype, "none", [], "",
        )  # fmt: skip
        return result


@dataclass(frozen=True, slots=True)
class IntMm:
    """`Linear` by `torch._int_mm`, int8 x int8 -> int32, on GPUs; sizes are cuBLAS's to choose."""

    def packed(self, codes: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
        """Weight codes, of which each column is one output's."""
        return codes.t()

    def __call__(
        self,
        codes: Tensor,
        zero_point: int,
        packed: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """See `Conv`; codes (..., I), result (..., O)."""
        # bytes less 128 are the same bits with the first one turned
        signed = codes.reshape(-1, codes.shape[-1]).bitwise_xor(128).view(torch.int8)
        sums = torch._int_mm(signed, packed)
        if zero_point != 128:
            sums += (128 - zero_point) * packed.sum(0, dtype=torch.int32)
        y = sums.float() * scale
        y = (y if bias is None else y + bias).to(dtype)
        return y.view(*codes.shape[:-1], y.shape[-1])

    @staticmethod
    def takes(rows: int, inputs: int, outputs: int) -> bool:
        """Whether cuBLAS multiplies matrices of these sizes."""
        return rows > 16 and inputs % 8 == outputs % 8 == 0


Product = Conv | Linear | IntMm


@functools.cache
def _zeros(count: int) -> Tensor:
    """Zero points of weights, which have none."""
    return torch.zeros(count, dtype=torch.int32, device="cpu")


def is_fast() -> bool:
    """Whether this processor has instructions for sums of int8 products."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    return ask is not None and any(ask().get(name, False) for name in _FAST)


@functools.cache
def reason_against(device: str = "cpu") -> str:
    """Why int8 operators cannot be used on a device; empty if they compute what they should.

    On cuda, linear layers alone.
    """
    if device not in _TRIALS:
        return f"there are no int8 operators for {device}"
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
        try:
            for product, weight, shape in _TRIALS[device]:
                for zero_point in (0, 7, 127):
                    if not _is_exact(product, weight, shape, zero_point, device):
                        kind = type(product).__name__.lower()
                        return f"torch's int8 operator for {kind} layers computes other sums"
        except Exception as error:  # whatever an operator that is not there, or is another, says
            return f"torch's int8 operators answer {str(error).splitlines()[0][:80]!r}"
    return ""


_TRIALS: dict[str, tuple[tuple[Product, tuple[int, ...], tuple[int, ...]], ...]] = {
    "cpu": (
        (Conv((1, 1), (1, 1), (1, 1), 1), (9, 33, 3, 3), (2, 33, 5, 7)),
        (Conv((2, 1), (0, 2), (1, 2), 1), (4, 5, 3, 2), (1, 5, 9, 8)),
        (Conv((1, 1), (1, 1), (1, 1), 8), (8, 1, 3, 3), (2, 8, 6, 6)),
        (Conv((1, 1), (0, 0), (1, 1), 1), (16, 64, 1, 1), (2, 64, 4, 4)),
        (Linear(), (10, 67), (3, 67)),
        (Linear(), (33, 64), (2, 5, 64)),
    ),
    "cuda": ((IntMm(), (24, 64), (3, 8, 64)), (IntMm(), (8, 72), (33, 72))),
}


def _is_exact(
    product: Product,
    weight: tuple[int, ...],
    shape: tuple[int, ...],
    zero_point: int,
    device: str,
) -> bool:
    """Whether sums of extreme codes, where sixteen bits would overflow, are those of integers."""
    generator = torch.Generator().manual_seed(zero_point)

    def among(values: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        places = torch.randint(len(values), shape, generator=generator, device="cpu")
        return torch.tensor(values, dtype=dtype, device="cpu")[places]

    codes = among((0, 1, 254, 255), shape, torch.uint8)
    signed = among((-127, -1, 0, 126, 127), weight, torch.int8)
    numbers = torch.arange(len(signed), dtype=torch.float32, device="cpu")
    scale = 2.0 ** numbers.remainder(5).sub(2)
    scale = scale if zero_point else scale[:1]  # one for all channels, and one for each
    on = [t.to(device) for t in (codes, signed, scale, numbers)]
    turned = on[1].transpose(0, 1).contiguous().transpose(0, 1)  # weights may lie in any order
    packed = product.packed(turned, on[2], codes.shape)
    got = product(on[0], zero_point, packed, on[2], on[3], torch.float32).cpu().double()
    x, w = codes.double() - zero_point, signed.double()
    if not isinstance(product, Conv):
        return torch.equal(got, F.linear(x, w) * scale.double() + numbers)
    sums = F.conv2d(x, w, None, product.stride, product.padding, product.dilation, product.groups)
    wanted = sums * scale.double().view(-1, 1, 1) + numbers.view(-1, 1, 1)
    return torch.equal(got, wanted)
