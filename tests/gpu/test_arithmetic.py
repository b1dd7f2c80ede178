"""Grids and quantizers: a GPU's numbers beside the CPU's."""

from functools import partial

import pytest
import torch

from qat import set_runtime
from qat.functional import int8
from qat.functional.affinity.feature_affinity import feature_affinity, projected_affinity
from qat.functional.affinity.projected import random_directions
from qat.functional.lsq import lsq_ste
from qat.functional.pact import pact_ste
from qat.functional.sign import sign_ste
from qat.functional.staircase import staircase_ste
from qat.functional.stairs import relu_stairs, signed_stairs
from qat.functional.ste import DERIVATIVES
from qat.names import StepDerivative
from qat.nn.weight import WeightQuantizer
from qat.spec.quant import GRID_BITS

pytestmark = pytest.mark.gpu

GRIDS = [(grid, bits) for grid, widths in GRID_BITS.items() for bits in widths]
# their slopes are made of exponentials, powers or angles, which every library rounds by itself
ROUNDED = {"reverse_exponential", "tanh", "power", "periodic", "dsq", "swish_sign"}
QUANTIZERS = {
    **{
        f"staircase {step}": lambda x, s, d, step=step: staircase_ste(
            x, s, stairs=relu_stairs(4), derivative=d, step_derivative=step
        )
        for step in StepDerivative.__args__
    },
    "sign": lambda x, s, d: sign_ste(x, derivative=d) * s,
    "lsq": lambda x, s, d: lsq_ste(x, s, stairs=signed_stairs(4), derivative=d),
    "pact": lambda x, s, d: pact_ste(x, s, stairs=relu_stairs(4), derivative=d),
}


def generated(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("grid", "bits"), GRIDS)
@pytest.mark.parametrize("size", [128, 40_000])
def test_a_projection(grid, bits, granularity, size, device):
    quantizer = WeightQuantizer(bits, granularity=granularity, grid=grid)
    w = generated(8, size)
    # every sum of such numbers is exact in whatever order: equal bit for bit
    exact = (w * 16).round().clamp(-16, 16) / 16
    if size == 128:
        assert torch.equal(quantizer(exact.to(device)).cpu(), quantizer(exact))
    codes, scale = quantizer.encode(w)
    codes_there, scale_there = (t.cpu() for t in quantizer.encode(w.to(device)))
    torch.testing.assert_close(scale_there, scale, rtol=1e-4, atol=0)
    # a weight between two levels but for rounding may take the other one
    assert (codes_there != codes).float().mean() <= 1e-3
    assert (codes_there.int() - codes.int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_levels_and_gradients(name, derivative, dtype, device):
    x, upstream = generated(64, 33).to(dtype), generated(64, 33, seed=1).to(dtype)
    found = [passes(QUANTIZERS[name], x.to(d), upstream.to(d), derivative) for d in ("cpu", device)]
    (y, in_x, in_step), (y_there, in_x_there, in_step_there) = found
    assert torch.equal(y_there, y)
    if derivative in ROUNDED:
        bound = 2e-2 if dtype.itemsize == 2 else 1e-4
        torch.testing.assert_close(in_x_there, in_x, rtol=bound, atol=1e-5)
    else:
        assert torch.equal(in_x_there, in_x)
    torch.testing.assert_close(
        in_step_there, in_step, rtol=1e-3, atol=1e-2
    )  # a sum in another order


def passes(quantizer, x, upstream, derivative):
    """Levels and both gradients, on the CPU."""
    x = x.detach().requires_grad_()
    step = torch.tensor(0.3, device=x.device, requires_grad=True)
    y = quantizer(x, step, derivative)
    return [t.detach().cpu() for t in (y, *torch.autograd.grad(y, (x, step), upstream))]


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.product
def test_fused_kernels_are_the_eager_ones(name, derivative, device):
    """Triton is asked to divide as CUDA does, so that no code moves."""
    x, upstream = generated(64, 33).to(device), generated(64, 33, seed=1).to(device)
    found = []
    for kernels in ("eager", "fused"):
        with set_runtime(kernels=kernels):
            found.append(passes(QUANTIZERS[name], x, upstream, derivative))
    (y, in_x, in_step), (y_fused, in_x_fused, in_step_fused) = found
    assert torch.equal(y, y_fused)
    torch.testing.assert_close(in_x_fused, in_x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(in_step_fused, in_step, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", [1, 2])
def test_affinities(order, device):
    """Exact, and by random directions, which are drawn on the CPU."""
    student, teacher = generated(4, 6, 5, 5).double(), generated(4, 8, 5, 5, seed=1).double()
    directions = random_directions(25, 15, generator=torch.Generator().manual_seed(3))
    losses = (feature_affinity, partial(projected_affinity, directions=directions))
    for loss in losses:
        here, there = (
            loss(student.to(d), teacher.to(d), order=order).cpu() for d in ("cpu", device)
        )
        torch.testing.assert_close(there, here)


def test_int8_sums_of_linear_layers(cuda):
    """As a run asks before it takes them."""
    assert int8.reason_against("cuda") == ""
