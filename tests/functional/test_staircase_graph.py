"""The staircase inside autograd: what it saves, vmap, compilation, autocast."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qat.functional.staircase import staircase_ste
from qat.functional.stairs import relu_stairs, signed_stairs
from qat.functional.ste import DERIVATIVES, ESTIMATORS

INDEXED = ["identity", "relu", "clipped_relu"]
STEP_DERIVATIVES = ["exact", "three_valued", "two_valued"]
STAIRS = {"relu4": relu_stairs(4), "relu8": relu_stairs(8), "signed4": signed_stairs(4)}


def saved_tensors(stairs, derivative, step_derivative, *, learned, shape=(7, 5)):
    saved = []
    x = torch.randn(shape, requires_grad=True)
    alpha = torch.tensor(0.3, requires_grad=learned)
    sharpness = torch.tensor(ESTIMATORS[derivative].sharpness(0.5))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        staircase_ste(
            x,
            alpha,
            stairs=stairs,
            derivative=derivative,
            step_derivative=step_derivative,
            sharpness=sharpness,
        )
    own = {t.data_ptr() for t in (x, alpha, sharpness)}
    new = [t for t in saved if t.data_ptr() not in own]
    return x, new, x.data_ptr() in {t.data_ptr() for t in saved}  # inputs aside, what is kept


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("step_derivative", STEP_DERIVATIVES)
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("bits", [1, 4, 7, 8])
def test_bytes_kept_for_backward(bits, derivative, step_derivative, learned):
    for stairs in (relu_stairs(bits), *([signed_stairs(bits)] if bits > 1 else [])):
        x, new, keeps_x = saved_tensors(stairs, derivative, step_derivative, learned=learned)
        assert {t.dtype for t in new} <= {torch.uint8}
        assert keeps_x == (derivative not in INDEXED)
        per_element = sum(t.nbytes for t in new) / x.numel()
        if (derivative == "identity" or keeps_x) and not learned:
            assert per_element == 0
        elif bits == 8 and learned and step_derivative == "exact":
            assert per_element <= 2  # 257 intervals do not fit into one byte
        else:
            assert per_element == 1


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_nothing_is_recorded_without_grad(derivative):
    with torch.no_grad():
        _, new, keeps_x = saved_tensors(relu_stairs(4), derivative, "exact", learned=True)
    assert new == []
    assert not keeps_x


class Widths(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {result.dtype}
        return result


def test_evaluation_computes_no_index():
    x, alpha = torch.randn(5, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    with Widths() as training:
        staircase_ste(x, alpha, stairs=relu_stairs(4))
    with torch.no_grad(), Widths() as evaluation:
        staircase_ste(x, alpha, stairs=relu_stairs(4))
    assert torch.uint8 in training.seen
    assert evaluation.seen == {torch.float32}


def test_frozen_inputs_get_no_gradient():
    x, alpha = torch.randn(5), torch.tensor(0.3, requires_grad=True)
    staircase_ste(x, alpha, stairs=relu_stairs(2)).sum().backward()
    assert x.grad is None
    assert alpha.grad is not None
    assert not staircase_ste(x, alpha.detach(), stairs=relu_stairs(2)).requires_grad


def test_channels_last_and_strides_do_not_matter():
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    y = staircase_ste(x, torch.tensor(0.3), stairs=relu_stairs(3))
    expected = staircase_ste(x.detach().contiguous(), torch.tensor(0.3), stairs=relu_stairs(3))
    assert torch.equal(y, expected)
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, ((x > 0) & (x <= 7 * torch.tensor(0.3))).float())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("stairs", STAIRS.values(), ids=STAIRS)
@pytest.mark.parametrize("step_derivative", STEP_DERIVATIVES)
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.product("derivative stairs")
def test_per_sample_gradients_by_vmap(stairs, derivative, step_derivative):
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)) * 2
    alpha = torch.tensor(0.3)
    weights = torch.arange(1.0, 10.0)

    sharpness = torch.tensor(ESTIMATORS[derivative].sharpness(0.5))

    def loss(row, step):
        y = staircase_ste(
            row,
            step,
            stairs=stairs,
            derivative=derivative,
            step_derivative=step_derivative,
            sharpness=sharpness,
        )
        return (y * weights).sum()

    by_vmap = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(0, None))(x, alpha)
    for i, row in enumerate(x):
        leaf, step = row.clone().requires_grad_(), alpha.clone().requires_grad_()
        loss(leaf, step).backward()
        assert torch.equal(by_vmap[0][i], leaf.grad)
        torch.testing.assert_close(by_vmap[1][i], step.grad, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_steps():
    x, steps = torch.randn(4, 5), torch.tensor([0.1, 0.7, 2.0])
    many = torch.vmap(lambda a: staircase_ste(x, a, stairs=relu_stairs(3)))(steps)
    for i, alpha in enumerate(steps):
        assert torch.equal(many[i], staircase_ste(x, alpha, stairs=relu_stairs(3)))


@pytest.mark.parametrize(
    ("stairs", "learned"), [*((name, True) for name in STAIRS), ("relu4", False)]
)
@pytest.mark.parametrize(
    ("derivative", "step_derivative"),
    [*zip(INDEXED, STEP_DERIVATIVES, strict=True), ("identity", "three_valued")],
)
@pytest.mark.product("derivative step_derivative")
def test_compiled_equals_eager(stairs, derivative, step_derivative, learned):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=generator) * 3
    x[0, 0], x[0, 1] = 0.0, 0.25
    upstream = torch.randint(-4, 5, x.shape, generator=generator).float()

    def fun(value, step):
        return staircase_ste(
            value,
            step,
            stairs=STAIRS[stairs],
            derivative=derivative,
            step_derivative=step_derivative,
        )

    results = []
    for call in (fun, torch.compile(fun, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        step = torch.tensor(0.25, requires_grad=learned)
        y = call(leaf, step)
        y.backward(upstream)
        results.append((y.detach(), leaf.grad, step.grad))
    (y, grad, grad_alpha), (y2, grad2, grad_alpha2) = results
    assert torch.equal(y, y2)
    assert torch.equal(grad, grad2)
    assert (grad_alpha is None) == (grad_alpha2 is None) == (not learned)
    if learned:
        assert torch.equal(grad_alpha, grad_alpha2)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_grid_arithmetic_is_float32_under_autocast(bits):
    generator = torch.Generator().manual_seed(bits)
    layer, images = torch.nn.Linear(16, 64), torch.randn(32, 16, generator=generator)
    alpha = torch.tensor(0.0131, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = layer(images)
        y = staircase_ste(x, alpha, stairs=relu_stairs(bits))
        y32 = staircase_ste(x.float(), alpha, stairs=relu_stairs(bits))
    assert x.dtype == y.dtype == torch.bfloat16
    assert y32.dtype == torch.float32
    codes = (x.float() / alpha.detach()).ceil().clamp(0, 2**bits - 1)
    assert torch.equal(y32, codes * alpha.detach())
    assert torch.equal(y, (codes * alpha.detach()).bfloat16())
    assert len(y.unique()) <= 2**bits
    y.sum().backward()
    assert alpha.grad.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32


def test_half_precision_gradients_of_alpha_do_not_overflow():
    x = torch.full((4,), 100.0, dtype=torch.float16, requires_grad=True)
    alpha = torch.tensor(0.1, requires_grad=True)
    y = staircase_ste(x, alpha, stairs=relu_stairs(8))
    y.backward(torch.full_like(y, 1000.0))  # as a loss scale makes them
    assert alpha.grad.item() == 4 * 255 * 1000
