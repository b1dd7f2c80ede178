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
from qat.functional.lsq import lsq_ste
from qat.functional.pact import pact_ste
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

    def ends_coded(x, w):
        return levels(F.conv2d(x, w))

    for function in (block, ends_coded):
        assert_same(lambda x, w, f=function: checkpoint(f, x, w, use_reentrant=reentrant),
                    IMAGE, KERNEL)  # fmt: skip


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


def test_memory_that_is_handed_out_unwatched_ends_the_knowledge():
    def by_data(x, w):
        y = levels(x)
        y.data.mul_(2)
        return F.conv2d(y, w)

    def by_array(x, w):
        y = levels(x)
        view = y.flatten(2)
        y.detach().numpy()[:] += 0.25
        assert not view.is_intact if isinstance(view, Coded) else True
        return F.conv2d(y, w)

    assert_same(by_data, IMAGE, KERNEL)
    assert_same(by_array, IMAGE, KERNEL)


def test_beside_other_subclasses_and_other_layouts_of_memory():
    class Other(torch.Tensor):
        pass

    def sparse(x, w):
        return torch.sparse.mm(torch.eye(3).to_sparse(), levels(x)[0].flatten(1)) * w.sum()

    assert_same(lambda x, w: F.conv2d(levels(x), w.as_subclass(Other)), IMAGE, KERNEL)
    assert_same(sparse, IMAGE, KERNEL)
    assert_same(lambda x, w: levels(x).to_sparse().to_dense() * w.sum(), IMAGE, KERNEL)


@pytest.mark.parametrize("go_back", [torch.Tensor.backward, torch.autograd.backward])
def test_a_quantizer_at_the_end_goes_back_through_checkpoints(go_back):
    found = []
    for saved in ("codes", "floats"):
        with set_runtime(saved=saved):
            x, w = IMAGE.clone().requires_grad_(), KERNEL.clone().requires_grad_()
            inner = checkpoint(lambda x, w: F.conv2d(levels(x), w), x, w, use_reentrant=False)
            y = levels(inner)
            go_back(y, torch.ones_like(y))
            found.append((x.grad, w.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradients_in_a_coded_tensor_itself():
    y = levels(IMAGE.clone().requires_grad_())
    (grad,) = torch.autograd.grad(F.conv2d(y, KERNEL).sum(), y)
    (expected,) = torch.autograd.grad(
        F.conv2d(z := y.detach().clone().requires_grad_(), KERNEL).sum(), z
    )
    assert torch.equal(grad, expected)


def test_the_scale_may_change_before_backward():
    found = []
    for saved in ("codes", "floats"):
        with set_runtime(saved=saved):
            scale, w = STEP.clone(), KERNEL.clone().requires_grad_()
            out = F.conv2d(lsq_ste(IMAGE, scale, stairs=nearest(4)), w)
            scale.mul_(2)
            out.sum().backward()
            found.append(w.grad)
    assert torch.equal(*found)


def test_one_channel_with_a_scale_of_its_own():
    scale = STEP.view(1, 1, 1, 1)

    def use(w, x):
        return F.linear(x.flatten(1)[:, :27], lsq_ste(w, scale, stairs=nearest(4)).flatten(1))

    assert_same(use, KERNEL[:1], IMAGE)


def test_parameters_made_of_coded_tensors_are_copied_as_parameters():
    y = levels(IMAGE.clone().requires_grad_())
    for made in (nn.Parameter(y.detach()), torch.no_grad()(lambda: nn.Parameter(levels(IMAGE)))()):
        other = copy.deepcopy(made)
        assert isinstance(other, nn.Parameter)
        assert torch.equal(other, made)
        assert isinstance(pickle.loads(pickle.dumps(made)), nn.Parameter)


def test_transposed_properties_are_views():
    y = levels(IMAGE.clone().requires_grad_())
    assert isinstance(y.mT, Coded)
    assert_same(lambda x, w: levels(x)[0] @ levels(x)[0].mT * w.sum(), IMAGE, KERNEL)


def test_a_compiled_part_takes_a_coded_input():
    torch._dynamo.reset()
    conv = nn.Conv2d(3, 4, 3)
    part = torch.compile(conv, fullgraph=True, backend="aot_eager")
    x = IMAGE.clone().requires_grad_()
    found = [torch.autograd.grad(f(levels(x)).sum(), (x, conv.weight)) for f in (part, conv)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_second_derivatives_of_a_learned_step():
    x = torch.tensor([0.4, -0.3, 9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = lsq_ste(x, scale, stairs=nearest(2))
    (in_scale,) = torch.autograd.grad(y.square().sum(), scale, create_graph=True)
    # y' = 2 y (code - v [inside]): d/dx passes y alone, as the rounding's own slope cancels
    (twice,) = torch.autograd.grad(in_scale, x)
    v = x.detach() / 0.5
    inside = ((v >= 0) & (v <= 3)).float()
    code = (v.clamp(0, 3) - 0.5).ceil().clamp(0, 3)
    torch.testing.assert_close(twice, 2 * (code - inside * v) * inside)
