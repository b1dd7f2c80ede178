"""A quantizer for each call: equal to a network whose every use has a module of its own."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qat.errors import SpecError
from qat.quantize.activations import activation_quantizers
from qat.quantize.calibrate import start_steps
from qat.quantize.call_sites import add_site
from qat.quantize.loading import load_weights
from qat.quantize.plan import project_weights, resolve
from qat.quantize.prepare import enable_quantizers, insert_quantizers, prepare
from qat.spec.quant import ActivationSpec, Override, QuantSpec

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _up_to_six(x):
    return F.hardtanh(x, 0, 6)


class Block(nn.Module):
    """A residual block; `relus` says how its three activations are called."""

    def __init__(self, relus):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relus = relus
        if relus == "modules":
            self.r0, self.r1, self.r2 = nn.ReLU(), nn.ReLU(), nn.ReLU6()
        if relus == "one module":
            self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6()

    def acts(self):
        return {
            "modules": lambda: (self.r0, self.r1, self.r2),
            "one module": lambda: (self.relu, self.relu, self.relu6),
            "functions": lambda: (F.relu, torch.relu, F.relu6),
            "methods": lambda: (lambda x: x.relu(), lambda x: x.relu_(), _up_to_six),
            "in place": lambda: (F.relu_, torch.relu_, lambda x: F.relu6(x, inplace=True)),
        }[self.relus]()  # fmt: skip

    def forward(self, x):
        first, second, third = self.acts()
        x = first(x)
        return third(self.b(second(self.a(x))) + x)


class Net(nn.Module):
    def __init__(self, relus):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.one, self.two = Block(relus), Block(relus)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


def network(relus, spec=None):
    torch.manual_seed(0)
    return prepare(Net(relus), spec or QuantSpec(), example=IMAGES)


@pytest.mark.parametrize("relus", ["one module", "functions", "methods", "in place"])
def test_calls_are_quantized_as_modules_of_their_own_are(relus):
    expected, net = network("modules"), network(relus)
    assert len(activation_quantizers(net)) == len(activation_quantizers(expected)) == 6
    for twin in (expected, net):
        start_steps(twin, QuantSpec(), [IMAGES])
        twin(IMAGES).square().sum().backward()
    assert torch.equal(net(IMAGES), expected(IMAGES))
    steps, wanted = (
        torch.stack([q.step.detach() for q in activation_quantizers(n).values()])
        for n in (net, expected)
    )
    assert sorted(steps) == sorted(wanted)
    assert torch.equal(net.one.a.weight.grad, expected.one.a.weight.grad)
    enable_quantizers(net, False)
    assert torch.equal(net(IMAGES), float_network(relus)(IMAGES))


def float_network(relus):
    torch.manual_seed(0)
    return Net(relus)


def test_names_and_options_of_calls():
    override = Override(match="one.relu6", activation={"bits": 2})
    net = network("one module", QuantSpec(overrides=(override,)))
    found = {name: q.bits for name, q in activation_quantizers(net).items()}
    assert found == {
        # once called, a module is replaced as ever
        **{"one.relu6": 2, "two.relu6": 4},
        **{f"{b}.relu.call_sites.relu_{i}": 4 for b in ("one", "two") for i in (0, 1)},
    }
    assert activation_quantizers(net)["one.relu6"].ceiling == 6
    override = Override(match="two", activation={"bits": 32})
    net = network("functions", QuantSpec(overrides=(override,)))
    assert [name for name in activation_quantizers(net) if name.startswith("two.call")] == []


def test_float_state_dicts_load_strictly():
    net, state = network("functions"), float_network("functions").state_dict()
    own = net.state_dict()
    assert {key for key in own if "call_sites" not in key} >= set(state)
    assert all(torch.equal(own[key], value) for key, value in state.items())
    assert len(load_weights(net, state)) == 6
    assert load_weights(network("functions"), own) == []


def test_networks_with_call_sites_copy_pickle_and_survive_an_error():
    net = network("functions").eval()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(IMAGES), net(IMAGES))
        with torch.no_grad():
            twin.one.call_sites.relu_0.step.mul_(3)
        assert not torch.equal(twin(IMAGES), net(IMAGES))
    expected = net(IMAGES)
    with pytest.raises(RuntimeError):
        net.one(IMAGES)  # three channels instead of four
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(net(IMAGES), expected)


def test_the_error_of_an_inner_call_may_be_caught_by_the_network():
    class Caught(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.a = Block("functions"), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            try:
                self.inner(x)
            except RuntimeError:
                x = F.relu(self.a(x))
            return x

    torch.manual_seed(0)
    net = Caught()
    inner = nn.Hardtanh(0, 1)
    add_site(net, "inner", "inner", "relu_1", inner)
    add_site(net, "", "", "relu_1", nn.Tanh())
    # the outer owner counts the call before the error, and its own one after it
    assert torch.equal(net(IMAGES), torch.tanh(net.a(IMAGES)))


def test_threads_do_not_disturb_each_other():
    net = network("functions").eval()
    with torch.no_grad():
        expected = net(IMAGES)
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.extend(_no_grad(net) for _ in range(20)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 80
    assert all(torch.equal(answer, expected) for answer in answers)


@torch.no_grad()
def _no_grad(net):
    return net(IMAGES)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_calls_count_from_the_block_that_is_run_again(use_reentrant):
    class Checkpointed(Net):
        def forward(self, x):
            x = self.stem(x)
            for block in (self.one, self.two):
                x = checkpoint(block, x, use_reentrant=use_reentrant)
            return self.head(x.mean((2, 3)))

    net = network("functions")
    net(IMAGES).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    net.__class__ = Checkpointed
    net(IMAGES).square().sum().backward()
    assert all(torch.equal(p.grad, wanted[name]) for name, p in net.named_parameters())


def test_compiled_it_is_one_graph():
    net = network("functions").eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IMAGES), net(IMAGES))
    assert torch.equal(compiled(2 * IMAGES), net(2 * IMAGES))


class Attention(nn.Module):
    """Its projection is used through a function, by a parameter and by another module's weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.mix = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 18), nn.Linear(6, 6)
        self.out = nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = F.linear(input=F.layer_norm(x, (6,)), weight=self.qkv.weight).chunk(3, -1)
        x = F.scaled_dot_product_attention(q, k, v)
        for _ in range(2):
            x = self.mix(x)
        return x.mean(1) @ self.out


def test_every_call_of_a_weight_has_a_quantizer_of_its_input():
    spec = QuantSpec()
    net = prepare(Attention(), spec, example=IMAGES)
    found = activation_quantizers(net)
    # each is kept by the module that makes the call
    calls = ("mix.call_sites.linear_1", "mix.call_sites.linear_2")
    assert list(found) == [*calls, "call_sites.linear_0", "call_sites.matmul_0"]
    assert all(quantizer.signed for quantizer in found.values())
    seen = {}
    for name, quantizer in found.items():
        quantizer.register_forward_hook(lambda m, a, out, n=name: seen.update({n: (a[0], out)}))
    net(IMAGES)
    for name, (before, after) in seen.items():
        assert not torch.equal(before, after), name
    first, second = seen[calls[0]][1], seen[calls[1]][0]
    assert torch.equal(second, F.linear(first, net.mix.weight, net.mix.bias))
    project_weights(net, spec)
    assert set(resolve(net, spec).quantized) == {"embed", "qkv", "mix", "out"}


POSITIVE = {
    "sigmoid": (torch.sigmoid, False),
    "softmax": (lambda x: x.softmax(1), False),
    "square": (lambda x: x.pow(2), False),
    "clamp": (lambda x: x.clamp(min=0), False),
    "product of two": (lambda x: x.abs() * torch.sigmoid(x), False),
    "upsampled": (lambda x: F.interpolate(x.exp(), scale_factor=2, mode="bilinear"), False),
    "tanh": (torch.tanh, True),
    "difference": (lambda x: x.abs() - torch.sigmoid(x), True),
    "leaky": (F.leaky_relu, True),
    "batch norm": (lambda x: F.batch_norm(x.abs(), torch.zeros(4), torch.ones(4)), True),
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIVE)
def test_an_input_that_is_never_negative_gets_no_negative_levels(name):
    function, is_signed = POSITIVE[name]

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(function(self.a(x)))

    net = prepare(Between(), QuantSpec(), example=IMAGES)
    assert net.b.input_quantizer.signed == is_signed
    signs = QuantSpec(activation=ActivationSpec(kind="sign", bits=1))
    # every sign of such an input is the same: it stays float
    twin = Between()
    insert_quantizers(twin, signs, IMAGES)
    assert len(activation_quantizers(twin)) == is_signed


IMAGE_FIRST = {
    "normalised": lambda x: (x - 0.5) / 0.25,
    "unfolded": lambda x: F.unfold(x, 2, stride=2).unflatten(2, (4, 4)),
    "transformed": lambda x: F.conv2d(x, torch.ones(3, 1, 2, 2), groups=3),
    "resized": lambda x: F.interpolate(x, size=6, mode="bicubic"),
    "pooled": lambda x: F.avg_pool2d(x, 2),
    "gamma": lambda x: x.abs() ** 0.45,
}


@pytest.mark.parametrize("name", IMAGE_FIRST)
@pytest.mark.parametrize("bits", [None, 8])
def test_the_image_is_quantized_only_where_asked_for(name, bits):
    function = IMAGE_FIRST[name]

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.r, self.b = nn.LazyConv2d(4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(self.r(self.a(function(x))))

    net = First()
    net(IMAGES)
    found = activation_quantizers(prepare(net, QuantSpec(input_bits=bits), example=IMAGES))
    asked = {} if bits is None else {"a.input_quantizer": bits}
    assert {name: quantizer.bits for name, quantizer in found.items()} == {"r": 4, **asked}


class Overwritten(nn.Module):
    """An in-place ReLU whose argument is read again: as a shortcut, or since its answer is not."""

    def __init__(self, way):
        super().__init__()
        self.c, self.r, self.d = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)
        self.way = way

    def forward(self, x):
        x = self.c(x)
        if self.way == "shortcut":
            return self.d(self.r(x)) + x
        if self.way == "view":
            y = x.flatten(2)
            return self.d(self.r(x)).flatten(2) + y
        if self.way == "function":
            F.relu_(x)
            return self.d(x)
        if self.way == "answer itself":
            F.relu_(x)
            return x
        x = self.r(x)
        return self.d(x) + x


@pytest.mark.parametrize("way", ["shortcut", "view", "function", "answer itself"])
def test_a_relu_that_changes_what_others_read_is_refused(way):
    with pytest.raises(SpecError, match="works in place, and what it overwrites is read again"):
        prepare(Overwritten(way), QuantSpec(), example=IMAGES)
    # where activations stay float nothing is changed
    spec = QuantSpec(activation=ActivationSpec(bits=32))
    prepare(Overwritten(way), spec, example=IMAGES)


def test_a_relu_in_place_whose_answer_alone_is_read_is_replaced():
    net = prepare(Overwritten("answer"), QuantSpec(), example=IMAGES)
    assert list(activation_quantizers(net)) == ["r"]


def test_a_network_is_prepared_once():
    net = network("functions")
    with pytest.raises(SpecError, match="prepared already"):
        prepare(net, QuantSpec(), example=IMAGES)


def test_modules_may_be_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.r = nn.Conv2d(3, 4, 1), nn.ReLU()
            self.g, self.b = nn.GELU(), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(input=self.g(input=self.r(input=self.a(input=x)) - 1))

    torch.manual_seed(0)
    net = prepare(Keyword(), QuantSpec(), example=IMAGES)
    assert list(activation_quantizers(net)) == ["r", "b.input_quantizer"]
    assert start_steps(net, QuantSpec(), [IMAGES]) == ["b.input_quantizer"]
    net(IMAGES).sum().backward()
    assert net.b.input_quantizer.step.grad is not None
