"""Fused kernels: the bits of the eager ones, in every layout."""

import pytest
import torch
from torch.nn import functional as F

from qat import set_runtime
from qat.errors import SpecError
from qat.functional.lsq import lsq_ste
from qat.functional.pact import pact_ste
from qat.functional.runtime import runtime
from qat.functional.sign import sign_ste
from qat.functional.staircase import staircase_ste
from qat.functional.stairs import Stairs, relu_stairs, signed_stairs
from qat.functional.ste import DERIVATIVES, ESTIMATORS

STEP_DERIVATIVES = ["exact", "three_valued", "two_valued"]
STAIRS = {
    "relu1": relu_stairs(1),
    "relu4": relu_stairs(4),
    "relu8": relu_stairs(8),
    "signed4": signed_stairs(4),
    "signed8": signed_stairs(8),
}
NEAREST = {
    "relu4": Stairs(low=0, high=15, first=0, shift=0.5),
    "relu8": Stairs(low=0, high=255, first=0, shift=0.5),
    "signed4": Stairs(low=-7, high=7, first=-7, shift=0.5),
}
# what Inductor and torch compute by vectors of their own
TRANSCENDENTAL = {"reverse_exponential", "tanh", "power", "periodic", "dsq", "swish_sign"}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "strided": lambda x: torch.cat([x, x], 3)[..., ::2],
}


def sharpness(name):
    return torch.tensor(ESTIMATORS[name].sharpness(0.5))


def results(quantizer, x, step, upstream):
    """Value and gradients by each kind of kernel."""
    found = []
    for kernels in ("eager", "fused"):
        with set_runtime(kernels=kernels):
            leaf, own = x.detach().requires_grad_(), step.detach().requires_grad_()
            y = quantizer(leaf, own)
            y.backward(upstream)
            found.append((y.detach(), leaf.grad, own.grad))
    return found


def assert_same(quantizer, x, step, *, derivative):
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.dtype)
    (y, in_x, in_step), (y2, in_x2, in_step2) = results(quantizer, x, step, upstream)
    assert torch.equal(y, y2)
    assert y.stride() == y2.stride()
    if derivative in TRANSCENDENTAL:
        torch.testing.assert_close(in_x2, in_x, rtol=2e-6, atol=2e-6)
    else:
        assert torch.equal(in_x, in_x2)
    if in_step is not None:
        size = (upstream.double().abs().sum() * 255).item()
        torch.testing.assert_close(in_step2, in_step, rtol=1e-6, atol=1e-9 * size)


def values(layout="contiguous", dtype=torch.float32):
    x = torch.randn(3, 5, 7, 6, generator=torch.Generator().manual_seed(7)) * 2
    x.view(-1)[:8] = torch.tensor([0.0, -0.0, 0.3, -0.3, 0.15, 1e4, -1e4, 4.5])
    return LAYOUTS[layout](x.to(dtype))


def test_the_usual_staircase_in_every_layout():
    for layout in LAYOUTS:

        def quantizer(x, step):
            return staircase_ste(x, step, stairs=relu_stairs(4))

        assert_same(quantizer, values(layout), torch.tensor(0.3), derivative="clipped_relu")


def test_codes_and_floats_of_fused_kernels_are_the_same():
    weight, found = torch.randn(4, 5, 3, 3), []
    for saved in ("codes", "floats"):
        with set_runtime(kernels="fused", saved=saved):
            x = values("channels_last").requires_grad_()
            w = weight.clone().requires_grad_()
            F.conv2d(staircase_ste(x, torch.tensor(0.3), stairs=relu_stairs(4)), w).sum().backward()
            found.append((x.grad, w.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stairs", STAIRS.values(), ids=STAIRS)
@pytest.mark.parametrize("step_derivative", STEP_DERIVATIVES)
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.product("derivative stairs dtype")
def test_every_staircase(derivative, step_derivative, stairs, dtype):
    def quantizer(x, step):
        return staircase_ste(
            x,
            step,
            stairs=stairs,
            derivative=derivative,
            step_derivative=step_derivative,
            sharpness=sharpness(derivative),
        )

    assert_same(quantizer, values(dtype=dtype), torch.tensor(0.3), derivative=derivative)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_every_sign(derivative, dtype):
    def quantizer(x, _):
        return sign_ste(x, derivative, sharpness=sharpness(derivative))

    assert_same(quantizer, values(dtype=dtype), torch.tensor(1.0), derivative=derivative)


@pytest.mark.slow
@pytest.mark.parametrize("stairs", NEAREST.values(), ids=NEAREST)
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("kind", [lsq_ste, pact_ste])
@pytest.mark.product("kind derivative")
def test_every_learned_clip(kind, derivative, stairs):
    step = torch.tensor(0.3 if kind is lsq_ste else 1.7)

    def quantizer(x, own):
        return kind(x, own, stairs=stairs, derivative=derivative, sharpness=sharpness(derivative))

    assert_same(quantizer, values(), step, derivative=derivative)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_of_channels(layout):
    steps = torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1, 1)

    def quantizer(w, own):
        return lsq_ste(w, own, stairs=NEAREST["signed4"])

    assert_same(quantizer, values(layout), steps, derivative="identity")


def test_the_runtime_is_set_at_once_and_until_the_end_of_a_block():
    before = runtime()
    with set_runtime(kernels="fused"):
        assert runtime().kernels == "fused"
        set_runtime(saved="floats")
    assert runtime() == before
    with pytest.raises(SpecError, match=r"runtime\.kernels must be eager or fused; got 'fast'"):
        set_runtime(kernels="fast")
    assert runtime() == before
