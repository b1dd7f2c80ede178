"""Tensors that know their codes: the same bits in backward, ordinary tensors to everyone else."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qat import set_runtime
from qat.functional.coded import Coded
from qat.functional.learned_clip import lsq_ste, pact_ste
from qat.functional.sign import sign_ste
from qat.functional.staircase import staircase_ste
from qat.functional.stairs import Stairs, relu_stairs, signed_stairs

STEP = torch.tensor(0.3)


def levels(x, stairs=None):
    return staircase_ste(x, STEP, stairs=stairs or relu_stairs(4))


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nearest(bits):
    return Stairs(low=0, high=2**bits - 1, first=0, shift=0.5)


QUANTIZERS = {
    "relu1": lambda x: levels(x, relu_stairs(1)),
    "relu4": levels,
    "relu8": lambda x: levels(x, relu_stairs(8)),
    "signed4": lambda x: levels(x, signed_stairs(4)),
    "signed8": lambda x: levels(x, signed_stairs(8)),
    "by value": lambda x: staircase_ste(x, STEP, stairs=relu_stairs(4), derivative="dsq"),
    "sign": lambda x: sign_ste(x, "clipped_relu"),
    "sign by value": lambda x: sign_ste(x, "piecewise_quadratic"),
    "sign, identity": lambda x: sign_ste(x, "identity"),
    "lsq": lambda x: lsq_ste(x, STEP, stairs=nearest(4)),
    "lsq8": lambda x: lsq_ste(x, STEP, stairs=nearest(8)),
    "pact": lambda x: pact_ste(x, STEP * 4, stairs=nearest(4)),
    "pact8": lambda x: pact_ste(x, STEP * 4, stairs=nearest(8)),
}
IMAGE, KERNEL = values(2, 3, 8, 8), values(4, 3, 3, 3, seed=1)
USES = {
    "conv": lambda y, w: F.conv2d(y, w),
    "strided, padded conv": lambda y, w: F.conv2d(y, w, stride=2, padding=1),
    "conv of channels_last": lambda y, w: F.conv2d(y.to(memory_format=torch.channels_last), w),
    "transposed conv": lambda y, w: F.conv_transpose2d(y, w.transpose(0, 1)),
    "conv of a slice": lambda y, w: F.conv2d(y[:, :, ::2], w),
    "conv of a chunk": lambda y, w: F.conv2d(y.chunk(2, 0)[1], w),
    "conv of a pool": lambda y, w: F.conv2d(F.max_pool2d(y, 2), w),
    "conv by einsum": lambda y, w: torch.einsum("nchw,oc->nohw", y, w[:, :, 0, 0]),
    "linear": lambda y, w: F.linear(y, w.reshape(12, 9)[:, :8]),
    "linear of a view": lambda y, w: F.linear(y.flatten(2).transpose(1, 2), w[:, :, 0, 0]),
    "matmul": lambda y, w: y @ y.transpose(-1, -2) + w.sum(),
    "attention": lambda y, w: F.scaled_dot_product_attention(y, y, y * w.mean()),
    "product with itself": lambda y, w: y * y * w.sum(),
    "in place": lambda y, w: F.conv2d(y.add_(1.5), w),
    "in place that keeps its result": lambda y, w: y.exp_() * w.sum(),
    "in place on a view": lambda y, w: (y[:, 0].mul_(2), F.conv2d(y, w))[1],
    "two layers": lambda y, w: F.conv2d(y, w) + F.conv2d(y, w * 2),
    "residual": lambda y, w: F.conv2d(y, w)[:, :3, :6, :6] + y[:, :, :6, :6],
    "checkpointed": lambda y, w: checkpoint(F.conv2d, y, w, use_reentrant=False),
}


def gradients(function, *leaves, saved):
    """Value and gradients of the leaves."""
    with set_runtime(saved=saved):
        own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        result = function(*own)
        weights = torch.arange(result.numel(), dtype=result.dtype).view(result.shape) % 7 - 3
        (result * weights).sum().backward()
    return [result.detach(), *[leaf.grad for leaf in own]]


def assert_same(function, *leaves):
    floats, codes = (gradients(function, *leaves, saved=kind) for kind in ("floats", "codes"))
    assert all(torch.equal(a, b) for a, b in zip(floats, codes, strict=True))


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_has_the_same_bits(use):
    assert_same(lambda x, w: use(levels(x), w), IMAGE, KERNEL)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
def test_every_quantizer_has_the_same_bits(quantizer, dtype, layout):
    x = IMAGE.to(dtype, memory_format=layout)
    x[0, 0, 0, :2] = torch.tensor([0.0, 1e4])
    with set_runtime(saved="codes"):
        y = quantizer(x.detach().requires_grad_())
        assert isinstance(y, Coded)
        assert torch.equal(y.levels.values(y.code, dtype), y)
        assert y.code.stride() == y.stride()
    assert_same(lambda x, w: F.conv2d(quantizer(x), w), x, KERNEL.to(dtype))


def test_what_was_kept_outlives_a_change_of_the_floats():
    """Autograd refuses to go back through floats that were written over; codes are still there."""

    def changed(x, w, *, copied):
        y = levels(x)
        out = F.conv2d(y, w).sum()
        return out + (y.clone() if copied else y).sigmoid_().sum()

    expected = gradients(lambda x, w: changed(x, w, copied=True), IMAGE, KERNEL, saved="floats")
    found = gradients(lambda x, w: changed(x, w, copied=False), IMAGE, KERNEL, saved="codes")
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_of_a_checkpoint(reentrant):
    def block(x, w):
        return F.conv2d(levels(x), w)

    assert_same(lambda x, w: checkpoint(block, x, w, use_reentrant=reentrant), IMAGE, KERNEL)


def test_hooks_of_the_user_see_the_codes():
    w, seen = KERNEL.clone().requires_grad_(), []

    def pack(tensor):
        seen.append(tensor.dtype)
        return tensor.clone()

    x = IMAGE.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.conv2d(levels(x), w).sum().backward()
    assert seen == [torch.uint8, torch.uint8, torch.float32]  # of the staircase, input, weight
    expected = gradients(lambda x, w: F.conv2d(levels(x), w), IMAGE, KERNEL, saved="floats")
    assert w.grad.shape == expected[2].shape


def test_tensors_offloaded_to_the_cpu():
    with torch.autograd.graph.save_on_cpu():
        assert_same(lambda x, w: F.conv2d(levels(x), w), IMAGE, KERNEL)


def test_second_derivatives_go_through_the_codes():
    def curvature(x, w):
        y = F.conv2d(torch.tanh(F.conv2d(levels(x * x), w)), w.transpose(0, 1))
        (grad,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, w))

    found = []
    for saved in ("floats", "codes"):
        with set_runtime(saved=saved):
            found.append(curvature(IMAGE.clone().requires_grad_(), KERNEL.clone().requires_grad_()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(grad.abs().sum() > 0 for grad in found[0])


def test_kept_bytes_are_a_quarter_and_shared():
    x, w = IMAGE.clone().requires_grad_(), KERNEL.clone().requires_grad_()
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    alpha = STEP.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = staircase_ste(x, alpha, stairs=relu_stairs(4))
        F.conv2d(y, w) + F.conv2d(y, w)
    assert sum(kept.values()) - w.nbytes == x.numel()


def test_the_floats_are_let_go():
    gc.disable()
    try:
        w = KERNEL.clone().requires_grad_()
        y = levels(IMAGE.clone().requires_grad_())
        floats = weakref.ref(y)
        out = F.conv2d(y, w)
        del y
        assert floats() is None
        out.sum().backward()
    finally:
        gc.enable()


def test_to_everyone_else_it_is_an_ordinary_tensor():
    y = levels(IMAGE.clone().requires_grad_())
    assert isinstance(y, Coded)
    assert type(y + 1) is type(torch.relu(y)) is type(y.as_subclass(torch.Tensor)) is torch.Tensor
    assert repr(y).startswith("tensor(")
    detached = y.detach()
    stored = io.BytesIO()
    torch.save(detached, stored)
    stored.seek(0)
    copies = copy.deepcopy(detached), pickle.loads(pickle.dumps(detached)), torch.load(stored)
    for other in copies:
        assert type(other) is torch.Tensor
        assert torch.equal(other, detached)
    assert y.numpy(force=True).shape == (2, 3, 8, 8)


def test_views_know_their_codes_until_their_memory_is_written_to():
    y = levels(IMAGE.clone().requires_grad_())
    view = y.flatten(1)[:, 5:9]
    assert isinstance(view, Coded)
    assert torch.equal(view.levels.values(view.code, view.dtype), view)
    assert view.is_intact
    with torch.no_grad():
        y.detach().add_(1)
    assert not view.is_intact
    assert not y.is_intact


def test_there_are_no_codes_where_nothing_is_kept_or_someone_traces():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(levels(x))

    with torch.no_grad():
        assert type(levels(IMAGE)) is torch.Tensor
    with set_runtime(saved="floats"):
        assert type(levels(IMAGE)) is torch.Tensor
    seen = []
    torch.func.grad(lambda x: seen.append(type(levels(x))) or levels(x).sum())(IMAGE)
    assert seen == [torch.Tensor]
    net = Net()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(IMAGE), net(IMAGE))
    assert torch.equal(torch.export.export(net, (IMAGE,)).module()(IMAGE), net(IMAGE))
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        assert type(levels(IMAGE)) is torch.Tensor


def test_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(lambda x, w: F.conv2d(levels(F.conv2d(x, w[:3])), w).float(), IMAGE, KERNEL)
        assert_same(lambda x, w: F.conv2d(levels(x), w).float(), IMAGE, KERNEL)


def test_a_function_mode_sees_both():
    names = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    with Seen():
        assert_same(lambda x, w: F.conv2d(levels(x), w), IMAGE, KERNEL)
    assert names.count("conv2d") == 2
