"""Sign and rounding: values, coarse gradients, what autograd keeps, vmap, compilation."""

import math
from fractions import Fraction

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from qat.functional.sign import round_ste, sign_ste
from qat.functional.stairs import Stairs, relu_stairs, signed_stairs
from qat.functional.ste import DERIVATIVES, ESTIMATORS, coarse_slope, sign_slope

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
STAIRS = {
    "relu2": relu_stairs(2),
    "signed3": signed_stairs(3),
    "lsq2": Stairs(low=-2, high=1, first=-2, shift=0.5),
}
KINDS = ["sign", *STAIRS]


def apply(x, kind, name, sharpness=None):
    if kind == "sign":
        return sign_ste(x, name, sharpness=sharpness)
    return round_ste(x, STAIRS[kind], name, sharpness=sharpness)


def slopes(x, kind, name, sharpness=None):
    if kind == "sign":
        return sign_slope(x, name, sharpness=sharpness)
    return coarse_slope(x, name, stairs=STAIRS[kind], sharpness=sharpness)


def inputs(dtype=torch.float32, shape=(40, 3)):
    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(shape, generator=generator) * 2).to(dtype)
    x.view(-1)[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=dtype)
    upstream = torch.randint(-4, 5, shape, generator=generator).to(dtype)
    return x, upstream


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_is_one_at_both_zeros_and_keeps_nan(dtype):
    x = torch.tensor([0.0, -0.0, 2.0, -2.0, math.inf, -math.inf, 1e-7, -1e-7, math.nan])
    y = sign_ste(x.to(dtype))
    assert y.dtype == dtype
    assert y[:-1].tolist() == [1, 1, 1, -1, 1, -1, 1, -1]
    assert y[-1].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", STAIRS)
def test_codes_are_the_definition_in_rational_numbers(kind, dtype):
    stairs = STAIRS[kind]
    z = (torch.arange(-48, 49) / 8).to(dtype)
    shift = Fraction(stairs.shift)
    codes = [
        min(max(math.ceil(Fraction(value) - shift), stairs.low), stairs.high)
        for value in z.tolist()
    ]
    y = round_ste(z, stairs)
    assert y.dtype == dtype
    assert y.tolist() == codes
    assert not torch.signbit(y[y == 0]).any()
    far = round_ste(torch.tensor([math.inf, -math.inf, 1e30, math.nan], dtype=dtype), stairs)
    assert far[:3].tolist() == [stairs.high, stairs.low, stairs.high]
    assert far[3].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.product("name kind")
def test_gradient_is_upstream_times_slope(name, kind, dtype):
    values, upstream = inputs(dtype)
    wide = values if dtype == torch.float64 else values.float()
    late = ESTIMATORS[name].sharpness(0.75)
    for sharpness in (None, late, torch.tensor(late), torch.tensor(late, dtype=torch.float64)):
        x = values.clone().requires_grad_()
        y = apply(x, kind, name, sharpness)
        (grad,) = torch.autograd.grad(y, x, upstream)
        assert y.dtype == grad.dtype == dtype
        # the slope is that of the input in float32 at least, rounded once
        expected = slopes(wide, kind, name, sharpness).to(dtype) * upstream
        assert torch.equal(grad, expected)
    assert torch.equal(values, inputs(dtype)[0])


@pytest.mark.parametrize("kind", ["sign", "signed3"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_strides_empty_tensors_and_no_grad(name, kind):
    base, upstream = inputs()
    x = base.t()[:, ::2].requires_grad_()
    assert not x.is_contiguous()
    y = apply(x, kind, name)
    (grad,) = torch.autograd.grad(y, x, upstream.t()[:, ::2])
    leaf = x.detach().contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(apply(leaf, kind, name), leaf, upstream.t()[:, ::2])
    assert torch.equal(y, apply(leaf, kind, name))
    assert torch.equal(grad, expected)
    empty = torch.zeros(0, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(apply(empty, kind, name).sum(), empty)
    assert grad.shape == (0, 3)
    with torch.no_grad():
        assert not apply(leaf, kind, name).requires_grad


@pytest.mark.parametrize("kind", ["sign", "signed3"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_backward_keeps_no_copy(name, kind):
    saved = []
    x = inputs()[0].requires_grad_()
    sharpness = torch.tensor(ESTIMATORS[name].sharpness(0.5))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        apply(x, kind, name, sharpness)
    if name == "identity":
        assert saved == []
    elif kind == "sign" and name in ("relu", "clipped_relu"):
        assert [t.dtype for t in saved] == [torch.uint8]  # the interval, a quarter of x
    else:
        assert {t.data_ptr() for t in saved} == {x.data_ptr(), sharpness.data_ptr()}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", ["sign", "signed3"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_vmap_over_inputs_weights_and_upstream_gradients(name, kind):
    x = inputs(shape=(5, 4))[0]
    w = inputs(shape=(4,))[0]
    sharpness = torch.tensor(ESTIMATORS[name].sharpness(0.5))

    def loss(weight, row):
        return ((apply(weight, kind, name, sharpness) * apply(row, kind, name)) ** 2).sum()

    def one(row):
        leaf, twin = w.clone().requires_grad_(), row.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, twin), (leaf, twin))

    per_sample = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, 0))(w, x)
    rows = [one(row) for row in x]
    assert torch.equal(per_sample[0], torch.stack([row[0] for row in rows]))
    assert torch.equal(per_sample[1], torch.stack([row[1] for row in rows]))
    jacobian = torch.func.jacrev(lambda weight: apply(weight, kind, name, sharpness))(w)
    assert torch.equal(jacobian, slopes(w, kind, name, sharpness).diag())


@pytest.mark.parametrize("kind", ["sign", "signed3"])
@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.product
def test_compiled_equals_eager_while_the_sharpness_moves(name, kind):
    torch._dynamo.reset()
    values, upstream = inputs()
    member = ESTIMATORS[name]
    buffer = torch.tensor(member.sharpness(0.0))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: apply(x, kind, name, buffer), fullgraph=True, backend=counter
    )
    seen = set()
    for progress in (0.0, 0.5, 1.0):
        buffer.fill_(member.sharpness(progress))
        leaf = values.clone().requires_grad_()
        y = compiled(leaf)
        y.backward(upstream)
        eager = values.clone().requires_grad_()
        expected = apply(eager, kind, name, buffer)
        expected.backward(upstream)
        assert torch.equal(y, expected)
        assert torch.equal(leaf.grad, eager.grad)
        seen.add(tuple(leaf.grad.flatten().tolist()))
    assert counter.frame_count == 1
    assert len(seen) == (3 if member.is_scheduled else 1)


def test_half_precision_under_autocast():
    layer, images = torch.nn.Linear(16, 64), torch.randn(32, 16)
    for name in DERIVATIVES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = layer(images)
            x.retain_grad()
            y = sign_ste(x, name, sharpness=torch.tensor(ESTIMATORS[name].sharpness(1.0)))
        assert x.dtype == y.dtype == torch.bfloat16
        y.backward(torch.ones_like(y))
        late = ESTIMATORS[name].sharpness(1.0)
        expected = sign_slope(x.detach().float(), name, sharpness=torch.tensor(late))
        assert torch.equal(x.grad, expected.bfloat16())
