"""Products of codes: exact sums, gradients of floats, floats where codes are not known."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qat import set_runtime
from qat.errors import SpecError
from qat.functional import int8, products
from qat.functional.coded import Coded, uncoded
from qat.functional.integer_rule import is_faster_in_int8, positions
from qat.functional.lsq import lsq_ste
from qat.functional.pact import pact_ste
from qat.functional.sign import sign_ste
from qat.functional.staircase import staircase_ste
from qat.functional.stairs import Stairs, relu_stairs, signed_stairs
from qat.functional.weight_codes import codes_of, found_scale, hold_scale
from qat.nn.binary_parametrization import METHODS
from qat.spec.quant import METHOD_BITS

STEP = torch.tensor(0.3)
STAIRS = {f"relu{b}": relu_stairs(b) for b in range(1, 9)}
STAIRS |= {f"signed{b}": signed_stairs(b) for b in range(2, 9)}
NEAREST = Stairs(low=0, high=15, first=0, shift=0.5)
SIGNED_NEAREST = Stairs(low=-8, high=7, first=-8, shift=0.5)
QUANTIZERS = {
    **{n: (lambda x, s=s: staircase_ste(x, STEP, stairs=s)) for n, s in STAIRS.items()},
    "sign": lambda x: sign_ste(x, "clipped_relu"),
    "sign, identity": lambda x: sign_ste(x, "identity"),
    "lsq": lambda x: lsq_ste(x, STEP, stairs=NEAREST),
    "lsq, signed": lambda x: lsq_ste(x, STEP, stairs=SIGNED_NEAREST),
    "pact": lambda x: pact_ste(x, STEP * 4, stairs=NEAREST),
}
CONVS = {
    "3 x 3": ((6, 8, 3, 3), {"padding": 1}),
    "strides, paddings, dilations": (
        (5, 8, 3, 2),
        {"stride": (2, 1), "padding": (0, 2), "dilation": 2},
    ),
    "groups": ((8, 2, 3, 3), {"groups": 4, "padding": 1}),
    "depthwise": ((8, 1, 3, 3), {"groups": 8, "padding": 1}),
    "1 x 1": ((16, 8, 1, 1), {}),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(*shape, largest=1, channels=False, seed=1):
    """A weight on a grid, held as codes and scales."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-largest, largest + 1, shape, generator=generator, dtype=torch.int8)
    scale = torch.rand(shape[0] if channels else 1, generator=generator) + 0.1
    w = codes * scale.view(-1, *(1,) * (len(shape) - 1))
    w.requires_grad_()
    held(w, scale)
    return w, codes, scale


def held(w, scale):
    with set_runtime(integer_forward="on"):
        hold_scale(w, scale)


@pytest.fixture
def counted(monkeypatch):
    """How many products were made of codes."""
    calls = []
    forward = products._Plan.forward
    monkeypatch.setattr(
        products._Plan, "forward", lambda plan, *a: (calls.append(plan), forward(plan, *a))[1]
    )
    return calls


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
def test_sums_are_exact(quantizer, conv, layout, channels, counted):
    shape, options = conv
    x = normal(2, 8, 9, 7).mul_(3).to(memory_format=layout).requires_grad_()
    w, codes, scale = weight_of(*shape, largest=127, channels=channels)
    with set_runtime(integer_forward="on"):
        y = quantizer(x)
        result = F.conv2d(y, w, **options)
        levels = y.levels
    own = (y.detach().as_subclass(torch.Tensor) / levels.step).round().double()
    sums = F.conv2d(own, codes.double(), **options)
    wanted = sums.float() * (scale * levels.step).view(-1, 1, 1)
    assert len(counted) == 1
    assert counted[0].operator is not None
    assert torch.equal(result, wanted)
    floats = F.conv2d(y.detach().as_subclass(torch.Tensor), w, **options)
    assert result.stride() == floats.stride()
    assert type(result) is torch.Tensor


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (2, 3, 5, 24)])
def test_linear_sums_are_exact(quantizer, shape, channels, counted):
    w, codes, scale = weight_of(10, 24, largest=127, channels=channels)
    with set_runtime(integer_forward="on"):
        y = quantizer(normal(*shape).mul_(3).requires_grad_())
        result = F.linear(y, w)
    own = (y.detach().as_subclass(torch.Tensor) / y.levels.step).round().double()
    sums = F.linear(own, codes.double())
    assert len(counted) == 1
    assert torch.equal(result, sums.float() * (scale * y.levels.step))


@pytest.mark.parametrize("saved", ["codes", "floats"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("conv", [*CONVS.values(), None], ids=[*CONVS, "linear"])
def test_gradients_are_those_of_floats(conv, layout, saved, counted):
    shape, options = conv or ((10, 7), {})
    product = F.conv2d if conv else F.linear
    bias = normal(shape[0], seed=3)

    def gradients(in_integers):
        x = normal(2, 8, 9, 7).to(memory_format=layout).requires_grad_()
        w, *_ = weight_of(*shape, channels=True)
        own = bias.clone().requires_grad_()
        with set_runtime(integer_forward="on" if in_integers else "off", saved=saved):
            y = product(staircase_ste(x, STEP, stairs=relu_stairs(4)), w, own, **options)
        grads = torch.autograd.grad((y * normal(*y.shape, seed=2)).sum(), (x, w, own))
        return y, *grads

    (y, *own), (other, *floats) = gradients(True), gradients(False)
    assert len(counted) == 1
    torch.testing.assert_close(y, other, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(own[:2], floats[:2], strict=True))
    torch.testing.assert_close(own[2], floats[2], rtol=1e-5, atol=1e-5)
    assert all(a.stride() == b.stride() for a, b in zip(own, floats, strict=True))


def test_codes_are_kept_and_floats_are_not():
    """What a product of codes keeps is the quantizer's byte."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage()._cdata] = t
        return t

    w, *_ = weight_of(8, 8, 3, 3)
    x = normal(2, 8, 6, 6).requires_grad_()
    with (
        set_runtime(integer_forward="on"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        y = F.conv2d(staircase_ste(x, STEP, stairs=relu_stairs(4)), w)
    sizes = sorted(t.numel() for t in kept.values() if t.dtype == torch.uint8)
    assert sizes == [x.numel()]
    assert not any(t.dtype == torch.float32 and t.shape == x.shape for t in kept.values())
    del y


def test_second_derivatives():
    w, *_ = weight_of(4, 3, 3, 3)
    grads = []
    for in_integers in (True, False):
        x = normal(1, 3, 6, 6).requires_grad_()
        with set_runtime(integer_forward="on" if in_integers else "off"):
            y = F.conv2d(staircase_ste(x, STEP, stairs=relu_stairs(4)), w)
        weights = normal(*y.shape, seed=2).requires_grad_()
        (first,) = torch.autograd.grad((y * weights).sum(), w, create_graph=True)
        grads.append(torch.autograd.grad(first.square().sum(), (weights, x)))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


# -- backward in bfloat16 --------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("in_integers", [False, True])
@pytest.mark.parametrize("conv", [*CONVS.values(), None], ids=[*CONVS, "linear"])
def test_bfloat16_rounds_the_gradient_alone(conv, in_integers, channels, counted):
    """The float64 gradients of the rounded upstream gradient, rounded once more."""
    shape, options = conv or ((10, 7), {})
    product = F.conv2d if conv else F.linear
    x = normal(2, 8, 9, 7).requires_grad_()
    w, _codes, scale = weight_of(*shape, largest=127, channels=channels)
    bias = normal(shape[0]).requires_grad_()
    with set_runtime(integer_forward="on" if in_integers else "off", backward="bf16"):
        y = staircase_ste(x, STEP, stairs=relu_stairs(8), derivative="identity")
        result = product(y, w, bias, **options)
        above = normal(*result.shape, seed=5)
        own = torch.autograd.grad((result * above).sum(), (x, w, bias))
    assert len(counted) == 1
    axes = scale.view(-1, 1, 1) if conv else scale
    rounded = (above * axes).bfloat16().double() / axes if channels else above.bfloat16().double()
    leaves = [t.detach().double().requires_grad_() for t in (y.as_subclass(torch.Tensor), w)]
    wanted = torch.autograd.grad((product(*leaves, **options) * rounded).sum(), leaves)
    for a, b in zip(own[:2], wanted, strict=True):
        # one rounding to eight bits, and sums in float32 of products that may cancel
        bound = b.abs() * 2**-8 + b.abs().max() * 2**-14
        assert ((a.double() - b).abs() <= bound).all()
        assert a.dtype == torch.float32
    torch.testing.assert_close(own[2], above.sum((0, 2, 3) if conv else (0, 1, 2)))


def test_second_derivatives_are_refused():
    w, *_ = weight_of(4, 3, 3, 3)
    with set_runtime(backward="bf16"):
        y = F.conv2d(staircase_ste(normal(1, 3, 6, 6), STEP, stairs=relu_stairs(4)), w)
    with pytest.raises(SpecError, match=r"use runtime\.backward=float32"):
        torch.autograd.grad(y.sum(), w, create_graph=True)


def test_a_channel_of_zeros_has_gradients():
    w, _codes, scale = weight_of(4, 3, 3, 3, channels=True)
    with torch.no_grad():
        w[1] = 0
    scale[1] = 0
    held(w, scale)
    x = normal(1, 3, 6, 6).requires_grad_()
    with set_runtime(backward="bf16"):
        y = F.conv2d(staircase_ste(x, STEP, stairs=relu_stairs(4)), w)
    in_x, in_w = torch.autograd.grad(y.sum(), (x, w))
    floats = torch.autograd.grad(
        F.conv2d(staircase_ste(x, STEP, stairs=relu_stairs(4)), w).sum(), (x, w)
    )
    torch.testing.assert_close((in_x, in_w), floats, rtol=2e-2, atol=2e-2)


def test_autocast_rounds_the_product_once(counted):
    w, codes, scale = weight_of(6, 8, 3, 3)
    x = normal(2, 8, 6, 6).bfloat16().requires_grad_()
    with set_runtime(integer_forward="on"), torch.autocast("cpu", torch.bfloat16):
        y = staircase_ste(x, STEP, stairs=relu_stairs(4))
        result = F.conv2d(y, w)
    own = y.detach().as_subclass(torch.Tensor).float().div(STEP).round().double()
    wanted = (F.conv2d(own, codes.double()).float() * (scale * STEP)).bfloat16()
    assert len(counted) == 1
    assert torch.equal(result, wanted)
    in_x, in_w = torch.autograd.grad(result.float().sum(), (x, w))
    assert in_x.dtype == torch.bfloat16
    assert in_w.dtype == torch.float32


# -- where codes are not known ---------------------------------------------------------------------


def case(name):
    """A product that is none of codes: input, weight, options."""
    w, *_ = weight_of(6, 8, 3, 3)
    x = staircase_ste(normal(2, 8, 6, 6).requires_grad_(), STEP, stairs=relu_stairs(4))
    if name == "the weight is on no grid":
        return x, normal(6, 8, 3, 3).requires_grad_(), {}
    if name == "the weight was written to":
        with torch.no_grad():
            w.mul_(1.1)
    if name == "the weight was written to past its version":
        w.data.mul_(1.1)
    if name == "the input was written to":
        x.add_(0.1)
    if name == "the input is made of levels":
        x = x + 0
    if name == "padding by name":
        return x, w, {"padding": "same"}
    if name == "float64":
        return x.double(), w.double(), {}
    return x, w, {}


CASES = (
    "the weight is on no grid",
    "the weight was written to",
    "the weight was written to past its version",
    "the input was written to",
    "the input is made of levels",
    "padding by name",
    "float64",
)


@pytest.mark.parametrize("name", CASES)
def test_floats_are_multiplied_where_codes_are_not_known(name, counted):
    with set_runtime(integer_forward="on", backward="bf16"):
        x, w, options = case(name)
        result = F.conv2d(x, w, **options)
    assert not counted
    plain = x.detach().as_subclass(torch.Tensor)
    assert torch.equal(result, F.conv2d(plain, w, **options))


def test_operators_that_compute_other_sums_are_not_used(monkeypatch, counted):
    call = int8.Linear.__call__
    int8.reason_against.cache_clear()
    monkeypatch.setattr(int8.Linear, "__call__", lambda *a: call(*a).add(1))
    try:
        assert (
            int8.reason_against() == "torch's int8 operator for linear layers computes other sums"
        )
        w, *_ = weight_of(6, 8)
        with set_runtime(integer_forward="on"):
            y = staircase_ste(normal(3, 8).requires_grad_(), STEP, stairs=relu_stairs(4))
            assert torch.equal(F.linear(y, w), F.linear(y.detach().as_subclass(torch.Tensor), w))
        assert not counted
    finally:
        int8.reason_against.cache_clear()


@pytest.mark.parametrize("zero_point", [0, 7, 128, 255])
@pytest.mark.parametrize("bias", [False, True])
def test_the_operator_of_gpus_by_its_arithmetic_on_a_cpu(zero_point, bias):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (3, 8, 40), generator=generator, dtype=torch.uint8)
    w = torch.randint(-127, 128, (24, 40), generator=generator, dtype=torch.int8)
    scale, own = torch.rand(24), torch.rand(24) if bias else None
    operator = int8.IntMm()
    packed = operator.packed(w, scale, codes.shape)
    found = operator(codes, zero_point, packed, scale, own, torch.float32)
    sums = F.linear(codes.double() - zero_point, w.double()).float() * scale
    assert torch.equal(found, sums + own if bias else sums)


@pytest.mark.gpu
def test_linear_sums_are_exact_on_a_gpu(counted):
    assert not int8.reason_against("cuda")
    w, codes, scale = weight_of(16, 24, largest=127)
    with set_runtime(integer_forward="on"):
        own = w.detach().cuda().requires_grad_()
        hold_scale(own, scale.cuda())
        y = staircase_ste(
            normal(64, 24).cuda().requires_grad_(), STEP.cuda(), stairs=relu_stairs(8)
        )
        result = F.linear(y, own)
    levels = y.detach().as_subclass(torch.Tensor).div(STEP.cuda()).round().cpu().double()
    assert len(counted) == 1
    assert torch.equal(result.cpu(), F.linear(levels, codes.double()).float() * (scale * STEP))


def test_operators_that_are_not_there_are_not_used(monkeypatch):
    int8.reason_against.cache_clear()
    monkeypatch.setattr(int8, "_ops", object())
    try:
        assert "qconv_prepack" in int8.reason_against()
    finally:
        int8.reason_against.cache_clear()


# -- evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_finds_the_codes(mode, counted):
    layer = nn.Conv2d(8, 6, 3, bias=False)
    _, codes, scale = weight_of(6, 8, 3, 3, largest=7, channels=True)
    with torch.no_grad():
        layer.weight.copy_(codes * scale.view(-1, 1, 1, 1))
    with mode(), set_runtime(integer_forward="on"):
        y = staircase_ste(normal(2, 8, 6, 6), STEP, stairs=relu_stairs(4))
        result, again = layer(y), layer(y)
        # what is written into y is seen by the next product
        changed = layer(y.add_(0.05))
        floats = layer(y.as_subclass(torch.Tensor) if isinstance(y, Coded) else y)
    own = staircase_ste(normal(2, 8, 6, 6), STEP, stairs=relu_stairs(4)).div(STEP).round()
    sums = F.conv2d(own.double(), codes.double())
    assert torch.equal(result, sums.float() * (scale * STEP).view(-1, 1, 1))
    assert torch.equal(again, result)
    assert len(counted) == 2
    assert torch.equal(changed, floats)


def test_packed_weights_are_kept_while_codes_are(monkeypatch):
    packed = []
    own = int8.Conv.packed
    monkeypatch.setattr(int8.Conv, "packed", lambda *a: (packed.append(1), own(*a))[1])
    w, _codes, scale = weight_of(6, 8, 3, 3)
    with torch.no_grad(), set_runtime(integer_forward="on"):
        y = staircase_ste(normal(2, 8, 6, 6), STEP, stairs=relu_stairs(4))
        for _ in range(3):
            F.conv2d(y, w)
        assert len(packed) == 1
        w.neg_()
        held(w, scale)
        F.conv2d(y, w)
        assert len(packed) == 2


@pytest.mark.parametrize("largest", [1, 3, 127])
@pytest.mark.parametrize("channels", [False, True])
def test_found_codes_are_the_values(largest, channels):
    w, *_ = weight_of(5, 64, 3, 3, largest=largest, channels=channels)
    assert found_scale(w) is not None
    found = codes_of(w, search=True)
    assert torch.equal(found.codes * found.scale.view(-1, 1, 1, 1), w)
    assert found_scale(normal(5, 4, 3, 3)) is None
    assert codes_of(normal(5, 4, 3, 3), search=True) is None
    assert found_scale(torch.zeros(5, 4)) is not None


def test_a_channel_whose_lowest_level_is_missing():
    """Its scale is a part of its smallest magnitude."""
    codes = torch.tensor([[2, -2, 4], [3, 9, -6]])
    scale = torch.tensor([[0.3], [0.7]])
    w = codes * scale
    found = codes_of(w, search=True)
    assert torch.equal(found.codes * found.scale.view(-1, 1), w)


@pytest.mark.parametrize("largest", [1, 127])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("kernels", ["eager", "fused"])
def test_codes_of_a_known_scale(kernels, channels, largest):
    w, codes, scale = weight_of(6, 8, 3, 3, largest=largest, channels=channels)
    if channels:
        with torch.no_grad():
            w[2], scale[2], codes[2] = 0, 0, 0
        held(w, scale)
    with torch.no_grad(), set_runtime(kernels=kernels):
        assert torch.equal(codes_of(w, search=False).codes, codes)


def test_codes_end_with_what_is_written():
    w, _codes, _ = weight_of(6, 8)
    assert codes_of(w, search=False) is not None
    with torch.no_grad():
        w[0, 0] = 5
    assert codes_of(w, search=False) is None


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("kind", METHODS)
def test_weights_inside_the_graph_are_codes_too(kind, granularity, counted):
    if (kind, granularity) == ("dorefa", "channel"):
        pytest.skip("its scale is the layer's")
    module = METHODS[kind](max(b for b in METHOD_BITS[kind] if b < 8), granularity)
    w = normal(6, 8, 3, 3).requires_grad_()
    module.start(w)
    with set_runtime(integer_forward="on"):
        y = staircase_ste(normal(2, 8, 6, 6).requires_grad_(), STEP, stairs=relu_stairs(4))
        result = F.conv2d(y, module(w))
    codes, scale = module.encode(w)
    own = y.detach().as_subclass(torch.Tensor).div(STEP).round().double()
    integers = module._to_values(codes.float()).double()
    wanted = F.conv2d(own, integers).float() * (scale.reshape(-1) * STEP).view(-1, 1, 1)
    assert len(counted) == 1
    assert torch.equal(result, wanted)


def test_checkpointing_keeps_no_code():
    """What is computed again in backward is not kept, in either precision."""
    for backward in ("float32", "bf16"):
        w, *_ = weight_of(6, 8, 3, 3)
        x = normal(2, 8, 6, 6).requires_grad_()
        alive = []

        def block(x, w=w, alive=alive):
            y = staircase_ste(x, STEP, stairs=relu_stairs(4))
            alive.append(weakref.ref(y.code))
            return F.conv2d(y, w).square()

        with set_runtime(integer_forward="on", backward=backward):
            result = checkpoint(block, x, use_reentrant=False)
            gc.collect()
            assert alive[0]() is None
            result.sum().backward()
        with set_runtime(backward=backward):
            plain = F.conv2d(staircase_ste(x.detach(), STEP, stairs=relu_stairs(4)), w)
        torch.testing.assert_close(result, plain.square())
        assert x.grad is not None


def test_integer_convolutions_answer_in_the_memory_format_that_is_asked():
    w, *_ = weight_of(6, 8, 3, 3)
    for asked, expected in (("contiguous", (96, 16, 4, 1)), ("channels_last", (96, 1, 24, 6))):
        with set_runtime(integer_forward="on", memory_format=asked):
            y = staircase_ste(normal(2, 8, 6, 6).requires_grad_(), STEP, stairs=relu_stairs(4))
            assert F.conv2d(y, w).stride() == expected


@pytest.mark.parametrize(
    ("shape", "weight", "expected"),
    [
        ((128, 16, 32, 32), (16, 16, 3, 3), False),  # reordering takes what the sum gains
        ((32, 256, 4, 4), (256, 256, 3, 3), True),
        ((32, 512, 2, 2), (512, 512, 3, 3), False),  # each weight is packed for 128 places
        ((32, 96, 32, 32), (96, 1, 3, 3), False),  # nine terms
        ((32, 16, 32, 32), (96, 16, 1, 1), False),
        ((8, 16, 32, 32), (16, 16, 3, 3), False),  # small
        ((2080, 768), (192, 768), True),
        ((128, 512), (10, 512), False),
    ],
)
def test_where_it_is_faster(monkeypatch, shape, weight, expected):
    monkeypatch.setattr("qat.functional.integer_rule.is_fast", lambda: True)
    x, w = torch.empty(shape), torch.empty(weight)
    product = int8.Linear() if len(shape) == 2 else int8.Conv((1, 1), (1, 1), (1, 1), 1)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            assert is_faster_in_int8(product, x, w) == expected


def test_in_channels_last_nothing_is_reordered(monkeypatch):
    monkeypatch.setattr("qat.functional.integer_rule.is_fast", lambda: True)
    x, w = torch.empty(128, 16, 32, 32), torch.empty(16, 16, 3, 3)
    product = int8.Conv((1, 1), (1, 1), (1, 1), 1)
    assert is_faster_in_int8(product, x.to(memory_format=torch.channels_last), w)
    with set_runtime(memory_format="channels_last"):
        assert is_faster_in_int8(product, x, w)


def test_under_autocast_it_is_not_faster():
    x, w = torch.empty(128, 16, 32, 32), torch.empty(16, 16, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_faster_in_int8(int8.Conv((1, 1), (1, 1), (1, 1), 1), x, w)


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (0, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_places_are_those_of_the_result(stride, padding, dilation):
    x, w = normal(2, 3, 9, 8), normal(4, 3, 3, 2)
    given = products._conv2d(x, w, None, stride, padding, dilation)
    result = F.conv2d(x, w, None, stride, padding, dilation)
    assert positions(given.product, x, w) == result[:, 0].numel()


# -- what bytes do not know ------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("of", ["activation", "weight"])
@pytest.mark.parametrize("quantizer", ["relu4", "signed4", "sign", "lsq", "pact"])
def test_a_nan_reaches_the_result(quantizer, of, training, counted):
    x, w = normal(3, 8), normal(6, 8)
    module = METHODS["lsq"](4)
    module.start(w)
    (x if of == "activation" else w)[1, 2] = torch.nan
    with torch.set_grad_enabled(training), set_runtime(integer_forward="on"):
        y = QUANTIZERS[quantizer](x.requires_grad_(training))
        result = F.linear(y, module(w.requires_grad_(training)))
    assert len(counted) == 1
    assert result.isnan().any()


WRITES = {
    "one place by .data": lambda w: w.data.view(-1).__setitem__(5, 3.0),
    "one place by numpy": lambda w: w.detach().numpy().__setitem__((0, 5), 3.0),
    "a NaN by .data": lambda w: w.data.view(-1).__setitem__(7, torch.nan),
    "other memory": lambda w: setattr(w, "data", w.data * 2),
    "from a vector": lambda w: torch.nn.utils.vector_to_parameters(normal(48), [w]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_past_versions_is_noticed(write, counted):
    w, *_ = weight_of(6, 8)
    w = held_parameter(w)
    with torch.no_grad(), set_runtime(integer_forward="on"):
        y = staircase_ste(normal(3, 8), STEP, stairs=relu_stairs(4))
        F.linear(y, w)
        write(w)
        result = F.linear(y, w)
        floats = F.linear(y.as_subclass(torch.Tensor), w)
    torch.testing.assert_close(result, floats, equal_nan=True)


def held_parameter(w):
    parameter = nn.Parameter(w.detach().clone())
    held(parameter, torch.tensor([float(w.detach().abs()[w != 0].min())]))
    return parameter


@pytest.mark.parametrize("channels", [False, True])
def test_weights_of_any_layout(channels):
    w, _codes, scale = weight_of(8, 5, largest=7, channels=channels)
    turned = w.detach().t().contiguous().t().requires_grad_()
    held(turned, scale)
    module = METHODS["lsq"](4, "channel" if channels else "tensor")
    module.start(turned)
    with set_runtime(integer_forward="on"):
        y = staircase_ste(normal(3, 5).requires_grad_(), STEP, stairs=relu_stairs(4))
        for weight in (turned, module(turned)):
            floats = F.linear(y.detach().as_subclass(torch.Tensor), uncoded(weight))
            torch.testing.assert_close(F.linear(y, weight), floats)


@pytest.mark.parametrize("product", ["linear", "conv"])
def test_autocast_of_float32_inputs_has_gradients(product, counted):
    shape = (6, 8, 3, 3) if product == "conv" else (6, 8)
    w, *_ = weight_of(*shape)
    x = normal(2, *((8, 6, 6) if product == "conv" else (8,))).requires_grad_()
    with set_runtime(integer_forward="on"), torch.autocast("cpu", torch.bfloat16):
        y = staircase_ste(x, STEP, stairs=relu_stairs(4))
        result = (F.conv2d if product == "conv" else F.linear)(y, w)
    in_x, in_w = torch.autograd.grad(result.float().sum(), (x, w))
    assert len(counted) == 1
    assert in_x.dtype == in_w.dtype == torch.float32


def test_forward_mode_sees_floats(counted):
    w, *_ = weight_of(6, 8)
    with torch.no_grad(), set_runtime(integer_forward="on"), forward_ad.dual_level():
        y = staircase_ste(normal(3, 8), STEP, stairs=relu_stairs(4))
        result = F.linear(y, forward_ad.make_dual(w.detach(), torch.ones_like(w)))
        assert forward_ad.unpack_dual(result).tangent is not None
    assert not counted


SHAPES = {
    "no output": (F.linear, (3, 8), (0, 8), {}),
    "no image": (F.conv2d, (0, 8, 6, 6), (4, 8, 3, 3), {}),
    "other channels": (F.conv2d, (2, 8, 6, 6), (4, 7, 3, 3), {}),
    "other inputs": (F.linear, (3, 8), (4, 7), {}),
    "a kernel too large": (F.conv2d, (2, 8, 2, 2), (4, 8, 3, 3), {}),
    "another bias": (F.linear, (3, 8), (4, 8), {"bias": torch.ones(5)}),
    "negative padding": (F.conv2d, (2, 8, 6, 6), (4, 8, 3, 3), {"padding": -1}),
}


@pytest.mark.parametrize(("product", "shape", "weight", "options"), SHAPES.values(), ids=SHAPES)
def test_odd_shapes_are_told_of_as_ever(product, shape, weight, options):
    def outcome(asked):
        w = torch.ones(weight)
        held(w, torch.ones(1))
        with torch.no_grad(), set_runtime(integer_forward=asked):
            y = staircase_ste(normal(*shape), STEP, stairs=relu_stairs(4))
            try:
                return product(y, w, **options).shape
            except RuntimeError as error:
                return str(error)

    assert outcome("on") == outcome("off")


def test_trials_do_not_depend_on_defaults():
    int8.reason_against.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert int8.reason_against() == ""
    finally:
        torch.set_default_dtype(torch.float32)
        int8.reason_against.cache_clear()


def test_fused_kernels_tell_the_sum_and_a_nan_with_it(counted):
    x = normal(2, 8, 6, 6)
    w, *_ = weight_of(4, 8, 3, 3)
    for with_nan in (False, True):
        own = x.clone().requires_grad_()
        if with_nan:
            with torch.no_grad():
                own[0, 0, 0, 0] = torch.nan
        with set_runtime(integer_forward="on", kernels="fused"):
            y = staircase_ste(own, STEP, stairs=relu_stairs(4))
            assert y.total is not None
            result = F.conv2d(y, w)
        assert bool(result.isnan().any()) == with_nan
    assert len(counted) == 2


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("kind", METHODS)
def test_weights_inside_the_graph_in_inference(kind, granularity, counted):
    if (kind, granularity) == ("dorefa", "channel"):
        pytest.skip("its scale is the layer's")
    module = METHODS[kind](max(b for b in METHOD_BITS[kind] if b < 8), granularity)
    w = normal(6, 8, 3, 3)
    module.start(w)
    results = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), set_runtime(integer_forward="on"):
            y = staircase_ste(normal(2, 8, 6, 6), STEP, stairs=relu_stairs(4))
            results.append(F.conv2d(y, module(w)))
    assert len(counted) == 2
    assert torch.equal(*results)
    with torch.inference_mode(), set_runtime(integer_forward="on"):
        own = w * 1.0  # made in inference itself
        assert torch.equal(F.conv2d(y, module(own)), results[0])
