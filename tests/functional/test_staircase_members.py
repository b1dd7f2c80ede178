"""The staircase with every member of the family: both gradients, at any input."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from qat.functional.staircase import staircase_ste
from qat.functional.stairs import Stairs, relu_stairs, signed_stairs
from qat.functional.ste import DERIVATIVES, ESTIMATORS, coarse_slope

STEP_DERIVATIVES = ["exact", "three_valued", "two_valued"]
STAIRS = {
    "relu1": relu_stairs(1),
    "relu4": relu_stairs(4),
    "relu8": relu_stairs(8),
    "signed3": signed_stairs(3),
    "lsq2": Stairs(low=-2, high=1, first=-2, shift=0.5),
}


def inputs(dtype=torch.float32, shape=(60, 3)):
    generator = torch.Generator().manual_seed(7)
    x = (torch.randn(shape, generator=generator) * 2).to(dtype)
    x.view(-1)[:6] = torch.tensor([0.0, -0.0, 0.25, -0.125, 0.125, 1e4], dtype=dtype)
    upstream = torch.randint(-4, 5, shape, generator=generator).to(dtype)
    upstream.view(-1)[5] = 3  # the one input above the range of 8 bits
    return x, upstream


def gradients(x, alpha, upstream, **options):
    x, alpha = x.detach().requires_grad_(), torch.tensor(alpha, requires_grad=True)
    y = staircase_ste(x, alpha, **options)
    return y.detach(), *torch.autograd.grad(y, (x, alpha), upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stairs", STAIRS.values(), ids=STAIRS)
@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.product("name stairs")
def test_gradient_in_x_is_upstream_times_slope(name, stairs, dtype):
    x, upstream = inputs(dtype)
    late = ESTIMATORS[name].sharpness(0.6)
    z = (x if dtype == torch.float64 else x.float()) / torch.tensor(0.25)
    for sharpness in (None, late, torch.tensor(late)):
        y, grad, _ = gradients(
            x, 0.25, upstream, stairs=stairs, derivative=name, sharpness=sharpness
        )
        slope = coarse_slope(z, name, stairs=stairs, sharpness=sharpness)
        assert y.dtype == grad.dtype == dtype
        assert torch.equal(grad, slope.to(dtype) * upstream)


@pytest.mark.parametrize("step_derivative", STEP_DERIVATIVES)
@pytest.mark.parametrize("stairs", STAIRS.values(), ids=STAIRS)
def test_value_and_step_gradient_do_not_depend_on_the_member(stairs, step_derivative):
    x, upstream = inputs()
    reference = None
    for name in DERIVATIVES:
        y, grad, grad_alpha = gradients(
            x, 0.25, upstream, stairs=stairs, derivative=name, step_derivative=step_derivative
        )
        reference = reference or (y, grad_alpha)
        assert torch.equal(y, reference[0])
        assert torch.equal(grad_alpha, reference[1])
        assert grad.abs().sum() > 0
    assert reference[1] != 0


@pytest.mark.parametrize("alpha", [1e-6, -1.0, 40.0])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_the_slope_looks_at_the_clamped_step(name, alpha):
    x, upstream = inputs()
    _, grad, _ = gradients(x, alpha, upstream, stairs=relu_stairs(2), derivative=name)
    z = x / torch.tensor(min(max(alpha, 1e-3), 5.0))
    assert torch.equal(grad, coarse_slope(z, name, stairs=relu_stairs(2)) * upstream)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_strides_and_empty_and_infinite_inputs(name):
    base, upstream = inputs()
    options = {"stairs": signed_stairs(4), "derivative": name}
    x, g = base.t()[:, ::2], upstream.t()[:, ::2]
    assert not x.is_contiguous()
    strided, dense = gradients(x, 0.3, g, **options), gradients(x.contiguous(), 0.3, g, **options)
    assert all(torch.equal(a, b) for a, b in zip(strided, dense, strict=True))
    y, grad, grad_alpha = gradients(torch.zeros(0, 3), 0.3, torch.zeros(0, 3), **options)
    assert y.shape == grad.shape == (0, 3)
    assert grad_alpha == 0
    far = torch.tensor([math.inf, -math.inf, 3e38, -3e38])
    _, grad, grad_alpha = gradients(far, 0.3, torch.ones(4), **options)
    expected = {"identity": [1.0] * 4, "relu": [1.0, 0.0] * 2}.get(name, [0.0] * 4)
    # the tanh starts nearly flat, but 3e38 is far for it too
    assert grad.tolist() == pytest.approx(expected, abs=1e-20)
    assert grad_alpha == 0  # the lowest and the highest code, twice


@pytest.mark.parametrize("name", DERIVATIVES)
def test_frozen_inputs_and_steps(name):
    x, upstream = inputs()
    full = gradients(x, 0.3, upstream, stairs=relu_stairs(3), derivative=name)
    leaf, alpha = x.clone().requires_grad_(), torch.tensor(0.3)
    staircase_ste(leaf, alpha, stairs=relu_stairs(3), derivative=name).backward(upstream)
    assert torch.equal(leaf.grad, full[1])
    alpha.requires_grad_()
    staircase_ste(x, alpha, stairs=relu_stairs(3), derivative=name).backward(upstream)
    assert torch.equal(alpha.grad, full[2])
    with torch.no_grad():
        silent = staircase_ste(leaf, alpha, stairs=relu_stairs(3), derivative=name)
    assert not silent.requires_grad
    assert torch.equal(silent, full[0])


@pytest.mark.parametrize("stairs", ["relu4", "signed3"])
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.product
def test_a_moving_sharpness_compiles_once(derivative, stairs):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=generator) * 3
    upstream = torch.randint(-4, 5, x.shape, generator=generator).float()
    member, counter = ESTIMATORS[derivative], CompileCounterWithBackend("aot_eager")
    buffer = torch.tensor(member.sharpness(0.0))

    def fun(value, step):
        return staircase_ste(
            value, step, stairs=STAIRS[stairs], derivative=derivative, sharpness=buffer
        )

    compiled = torch.compile(fun, fullgraph=True, backend=counter)
    seen = set()
    for progress in (0.0, 0.5, 1.0):
        buffer.fill_(member.sharpness(progress))
        results = []
        for call in (fun, compiled):
            leaf, step = x.clone().requires_grad_(), torch.tensor(0.25, requires_grad=True)
            y = call(leaf, step)
            y.backward(upstream)
            results.append((y.detach(), leaf.grad, step.grad))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        seen.add(tuple(results[0][1].flatten().tolist()))
    assert counter.frame_count == 1
    assert len(seen) == (3 if member.is_scheduled else 1)
