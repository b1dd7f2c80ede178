"""Networks of odd shapes: each was prepared, audited or exported wrongly once."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat import IntegerNetwork, network_graph
from qat.errors import SpecError
from qat.export.packed.convert import convert
from qat.quantize.activations import activation_quantizers
from qat.quantize.audit import audit
from qat.quantize.plan import project_weights, resolve, weight_projections
from qat.quantize.preparation_version import preparation_of
from qat.quantize.prepare import prepare
from qat.spec.quant import EndsSpec, QuantSpec
from tests.quantize.test_independent_count import operand_values

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MANY = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def conv(inputs=4, outputs=4, size=1, **options):
    return nn.Conv2d(inputs, outputs, size, **options)


class Net(nn.Module):
    """Modules by name, and a forward that is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = conv()

    def forward(self, x):
        return F.relu(self.c(x))


def made(net, spec=None):
    """Prepared, with hard weights, in eval mode."""
    spec = spec or QuantSpec()
    prepare(net, spec, example=IMAGES).eval()
    project_weights(net, spec)
    return net


def checked(net, spec=None):
    """The audit of a prepared network, which claims no more than its values show."""
    found = audit(net, spec or QuantSpec(), IMAGES)
    count = operand_values.count_values(net, MANY)
    assert found.quantized_share <= count.parameter_share + 1e-9
    assert found.product_share <= count.product_share + 1e-4
    return found


def quantizers(net):
    return list(activation_quantizers(net))


def test_the_root_s_own_calls_are_exported():
    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.c(F.adaptive_avg_pool2d(x, 1).flatten(1))

    net = made(Net(forward, a=conv(3), b=conv(), c=nn.Linear(4, 3)))
    assert quantizers(net) == ["call_sites.relu_0", "call_sites.relu_1"]
    graph = network_graph(net, convert(net, QuantSpec()), IMAGES)
    torch.testing.assert_close(IntegerNetwork(graph)(IMAGES), net(IMAGES))


def test_calls_of_one_relu_module_are_exported():
    relu = nn.ReLU()
    layers = [conv(3), relu, conv(), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    net = made(nn.Sequential(*layers))
    assert quantizers(net) == ["1.call_sites.relu_0", "1.call_sites.relu_1"]
    graph = network_graph(net, convert(net, QuantSpec()), IMAGES)
    torch.testing.assert_close(IntegerNetwork(graph)(IMAGES), net(IMAGES))


def test_containers_stay_what_they_are():
    relu, shared, block = nn.ReLU(), conv(), Block()
    for net in (
        nn.Sequential(conv(3), relu, conv(), relu, conv()),
        nn.Sequential(conv(3), nn.GELU(), shared, nn.GELU(), shared, conv()),
        nn.Sequential(conv(3), block, block, conv()),
    ):
        count, last = len(net), net[-1]
        made(net)
        assert (len(net), net[-1]) == (count, last)
        checked(net)


def test_a_module_under_two_names():
    net = Net(lambda self, x: self.b(F.relu(self.a(self.stem(x)))), stem=conv(3), a=conv())
    net.b = net.a
    made(net)
    assert len(weight_projections(net, QuantSpec())) == 2
    assert resolve(net, QuantSpec()).weights["b"].is_shared
    assert checked(net).quantized_share == 1


class Absolute(nn.Conv2d):
    def forward(self, input):
        return super().forward(input.abs())


class Twice(nn.Linear):
    def forward(self, input):
        return F.linear(F.gelu(F.linear(input, self.weight)), self.weight)


def test_a_layer_that_changes_its_input_has_the_quantizer_behind_the_change():
    net = made(nn.Sequential(conv(3), Absolute(4, 4, 1)))
    assert quantizers(net) == ["1.call_sites.conv2d_0"]
    assert not net[1].call_sites.conv2d_0.signed
    x = net[0](IMAGES)
    levels = net[1].call_sites.conv2d_0(x.abs())
    assert torch.equal(net(IMAGES), F.conv2d(levels, net[1].weight, net[1].bias))
    net = made(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), Twice(4, 4)))
    assert quantizers(net) == [f"2.call_sites.linear_{i}" for i in (0, 1)]


HALVES = {
    "changed half": lambda self, x, y: (y[:, :2], y[:, 2:].abs_()),
    "quantized half": lambda self, x, y: (y[:, :2], y[:, 2:].copy_(self.r(self.d(x)))),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_change_of_one_half_says_nothing_of_the_other(name):
    def forward(self, x):
        low, high = HALVES[name](self, x, self.a(x))
        return self.b(low) + self.c(high)

    modules = {"a": conv(3), "b": conv(2), "c": conv(2), "d": conv(3, 2), "r": nn.ReLU()}
    net = made(Net(forward, **modules))
    assert net.b.input_quantizer.signed
    checked(net)


def test_other_calls_in_training_are_refused():
    def forward(self, x):
        x = self.a(x)
        if self.training:
            self.seen = self.aux(F.relu(-x))
        return self.b(F.relu(x))

    net = Net(forward, a=conv(3), aux=conv(), b=conv())
    with pytest.raises(SpecError, match=r"other functions in training .* call_sites\.relu_0"):
        prepare(net, QuantSpec(), example=IMAGES)


def test_a_head_for_training_alone_disturbs_nothing():
    def forward(self, x):
        x = self.block(self.a(x))
        return (self.b(x), self.aux(x)) if self.training else self.b(x)

    net = made(Net(forward, a=conv(3), block=Block(), b=conv(), aux=Block()))
    assert quantizers(net) == ["block.c.input_quantizer", "block.call_sites.relu_0"]
    assert "aux.c" in resolve(net, QuantSpec()).quantized


def test_a_compiled_network_has_the_plan_of_its_own():
    spec = QuantSpec(ends=EndsSpec(first="float", last="float"))
    net = made(nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU(), conv()), spec)
    compiled = torch.compile(net, backend="eager")
    assert list(weight_projections(compiled, spec)) == [net[2].weight]
    assert audit(compiled, spec, IMAGES) == audit(net, spec, IMAGES)
    assert convert(compiled, spec).weights.keys() == {"2"}
    parallel = nn.DataParallel(net)
    assert list(weight_projections(parallel, spec)) == [net[2].weight]


@pytest.mark.parametrize("relu", [nn.ReLU(), Net(lambda self, x: F.relu(x))])
def test_a_relu_on_the_image_leaves_it_float(relu):
    net = made(nn.Sequential(copy.deepcopy(relu), conv(3), nn.ReLU(), conv()))
    assert quantizers(net) == ["2"]
    assert preparation_of(net) == 2
    assert checked(net).layers[0].source == "image"


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate", "zeros"])
def test_padding_keeps_levels(mode):
    layers = [conv(3), nn.ReLU(), conv(size=3, padding=1, padding_mode=mode)]
    net = made(nn.Sequential(*layers))
    assert quantizers(net) == ["1"]
    assert preparation_of(net) == 1
    assert checked(net).layers[1].input_bits == 4


def test_traced_script_is_seen():
    script = torch.jit.trace(nn.Sequential(conv(3), nn.GELU(), conv()), IMAGES)
    net = nn.Sequential(script, nn.ReLU(), conv())
    prepare(net, QuantSpec(), example=IMAGES)
    project_weights(net, QuantSpec())
    assert audit(net, QuantSpec(), IMAGES).macs == 64 * (12 + 16 + 16)


def test_a_padded_weight_is_on_no_grid_without_zero():
    class Padded(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, F.pad(self.weight, (1, 1, 1, 1)), padding=1)

    net = nn.Sequential(conv(3), nn.ReLU(), Padded(4, 4, 1))
    with pytest.warns(UserWarning, match="pad makes zeros, which its grid has not"):
        prepare(net, QuantSpec(), example=IMAGES)


PARAMETERS = {
    "on the left": lambda self, x: F.linear(self.p, x.flatten(1)),
    "learned query": lambda self, x: self.q(self.p) @ x.flatten(1).t(),
    "of two": lambda self, x: F.linear(x.flatten(1), F.normalize(self.p.t()).t() @ self.s),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_no_parameter_is_forgotten(name):
    modules = {"stem": conv(3), "q": nn.Linear(256, 256), "r": nn.ReLU()}
    net = Net(lambda self, x: PARAMETERS[name](self, self.r(self.stem(x))), **modules)
    net.p, net.s = nn.Parameter(torch.randn(5, 256)), nn.Parameter(torch.randn(256, 256))
    made(net)
    found = checked(net)
    assert not [
        row for row in found.layers if row.name == "p" and "not reached" in row.input_reason
    ]


def test_a_shared_layer_with_two_quantizers_costs_what_its_calls_cost():
    def forward(self, x):
        return self.b(F.gelu(self.b(self.r(self.a(x)))))

    net = made(Net(forward, a=conv(3), b=conv(), r=nn.ReLU()))
    found = checked(net)
    row = found.layers[1]
    assert (row.source, row.input_bits, row.input_signed) == ("quantized", 4, True)
    assert row.macs_on_grids == row.macs == 2 * 64 * 16
    assert row.bops == row.macs * 4
    assert found.product_share == row.macs / found.macs


def test_a_plan_made_without_an_example_knows_less_and_says_so():
    net = Net(lambda self, x: self.a(x).flatten(1) @ self.p, a=conv(3))
    net.p = nn.Parameter(torch.randn(256, 3))
    plan = resolve(net, QuantSpec())
    prepare(net, plan, example=IMAGES)
    project_weights(net, plan)
    found = audit(net, plan, IMAGES)
    assert found.quantized_share == 12 / (12 + 768)
    assert found.layers[1].reason.startswith("not in the plan")


def test_a_teacher_inside_is_a_row_of_its_own():
    net = Net(lambda self, x: self.b(F.relu(self.a(x))), a=conv(3), b=conv())
    net.teacher = copy.deepcopy(net.b)
    found = checked(made(net))
    assert [row.name for row in found.layers] == ["a", "b", "teacher"]
    assert found.layers[2].input_reason == "not reached by the example"


def test_what_is_added_up_is_behind_it_too():
    def forward(self, x):
        x = F.relu(self.l(x.flatten(1)))
        return self.h(torch.addmm(self.m(x), x, self.p))

    net = Net(forward, l=nn.Linear(192, 4), m=nn.Linear(4, 4), h=nn.Linear(4, 3))
    net.p = nn.Parameter(torch.randn(4, 4))
    spec = QuantSpec(ends=EndsSpec(last="float"))
    made(net, spec)
    plans = resolve(net, spec).weights
    assert {name for name, plan in plans.items() if plan.reason} == {"h"}


def test_what_version_1_would_have_done_otherwise_is_known():
    net = made(
        Net(lambda self, x: self.b(self.r(self.a(x - 0.5))), a=conv(3), r=nn.ReLU(), b=conv())
    )
    assert preparation_of(net) == 2
    net = made(Net(lambda self, x: self.b(self.r(self.a(x))), a=conv(3), r=nn.ReLU(), b=conv()))
    assert preparation_of(net) == 1


def test_what_cannot_be_followed_is_one_sentence():
    script = torch.jit.script(nn.Sequential(conv(3), nn.ReLU()))
    with pytest.raises(SpecError, match="ScriptModule cannot be prepared"):
        prepare(script, QuantSpec(), example=IMAGES)
    with pytest.raises(SpecError, match=r"0\.weight has no shape yet"):
        prepare(nn.Sequential(nn.LazyConv2d(4, 1)), QuantSpec(), example=IMAGES)
    with pytest.raises(SpecError, match="example must be a Tensor, got a list"):
        prepare(conv(3), QuantSpec(), example=[IMAGES])
    net = Net(lambda self, x: self.b(F.relu(self.a(x))), a=conv(3), b=conv())
    net.call_sites = nn.Identity()
    with pytest.raises(SpecError, match="has a child call_sites of its own"):
        prepare(net, QuantSpec(), example=IMAGES)


def test_powers_by_tensors():
    net = Net(
        lambda self, x: self.b(self.a(x).abs() ** self.p + 2 ** self.a(x)), a=conv(3), b=conv()
    )
    net.p = nn.Parameter(torch.full((4, 1, 1), 3.0))
    made(net)
    assert quantizers(net)[-1] == "b.input_quantizer"


@pytest.mark.slow
def test_many_views_of_one_memory_cost_little():
    def forward(self, x):
        x = self.a(x)
        parts = [x[:, i % 4, i % 8, :] for i in range(3000)]
        return self.b(F.relu(x)) + sum(p.sum() for p in parts[:3])

    made(Net(forward, a=conv(3), b=conv()))


def test_a_sum_and_a_concatenation_of_what_is_not_negative():
    for join in (lambda a, b: torch.cat([a, b], 1)[:, :4], lambda a, b: a + b):
        net = Net(lambda self, x, j=join: self.c(j(self.a(x).abs(), self.b(x).square())),
                  a=conv(3), b=conv(3), c=conv())  # fmt: skip
        assert not made(net).c.input_quantizer.signed
