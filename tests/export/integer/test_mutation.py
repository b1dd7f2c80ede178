"""Changes in place: exported with the network's own numbers, or refused by name."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat import (
    ActivationSpec,
    IntegerNetwork,
    QuantSpec,
    convert,
    network_graph,
    prepare,
    weight_projections,
)
from qat.errors import SpecError
from qat.export.integer.mutation import _memory, overlap

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions; `change(y, x)` sees the second one's output and its input."""

    def __init__(self, change):
        super().__init__()
        self.c, self.r = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.d, self.r2, self.f = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 5)
        self.swish = nn.Hardswish(inplace=True)
        self.register_buffer("seen", torch.zeros(4, 1, 1))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.change = change

    def forward(self, x):
        x = self.r(self.c(x))
        return self.f(self.r2(self.change(self, self.d(x), x)).mean((2, 3)))


def first(*values):
    """The first of several values: the others are for what they do."""
    return values[0]


def parts_by_turns(net, y, x):
    even = y[:, :, ::2, ::2]
    y[:, :, 1::2].zero_()
    return even


def half_of_the_read_part(net, y, x):
    even = y[:, :, ::2, ::2]
    y[:, :, :, :5].zero_()
    return even


def by_index(net, y, x):
    y[:, 0] = 0
    return y


def by_index_of_a_view(net, y, x):
    y.detach()[:, 0] = 0
    return y


def by_data(net, y, x):
    y.data = x
    return y


# the answer alone is read: exported
RIGHT = {
    "relu-inplace": lambda net, y, x: F.relu(y, inplace=True),
    "relu-inplace-by-position": lambda net, y, x: F.relu(y, True),
    "relu_": lambda net, y, x: y.relu_(),
    "torch.relu_": lambda net, y, x: torch.relu_(y),
    "add_": lambda net, y, x: y.add_(x),
    "iadd": lambda net, y, x: operator.iadd(y, x),
    "shortcut-before": lambda net, y, x: operator.iadd(y, x.relu()),
    "two": lambda net, y, x: y.relu_().add_(x),
    "copy": lambda net, y, x: first(y, y.clone().relu_()),
    "not-read-again": lambda net, y, x: first(y + x, x.relu_()),
    "its-own-input": lambda net, y, x: x.add_(y),
    "counter": lambda net, y, x: first(y, net.seen.add_(1)),
    "dropout": lambda net, y, x: first(y, F.dropout(y, 0.5, net.training, inplace=True)),
    "another-part": parts_by_turns,
    "size-only": lambda net, y, x: y.add_(x).view(-1, 4, y.size(2), 8),
}
# somebody else reads what has changed: refused
WRONG = {
    "add_": (lambda net, y, x: first(y, y.add_(x)), "the function add_ changes"),
    "relu_": (lambda net, y, x: first(y, y.relu_()), "the function relu_ changes"),
    "relu": (lambda net, y, x: first(y, F.relu(y, inplace=True)), "the function relu changes"),
    "iadd": (lambda net, y, x: first(y, operator.iadd(y, x)), "the function iadd changes"),
    "imul": (lambda net, y, x: first(y, operator.imul(y, 2)), "the function imul changes"),
    "isub": (lambda net, y, x: first(y, operator.isub(y, x)), "the function isub changes"),
    "itruediv": (lambda net, y, x: first(y, operator.itruediv(y, 2)), "function itruediv changes"),
    "out": (lambda net, y, x: first(y, torch.add(y, x, out=y)), "the function add changes"),
    "module": (lambda net, y, x: first(y, net.swish(y)), r"the layer swish \(Hardswish\) changes"),
    "view": (lambda net, y, x: first(y, y.view(-1).mul_(2)), "the function mul_ changes"),
    "detached": (lambda net, y, x: first(y, y.detach().mul_(2)), "the function mul_ changes"),
    "data": (lambda net, y, x: first(y, y.data.mul_(2)), "the function mul_ changes"),
    "part": (lambda net, y, x: first(y, y[:, 0].zero_()), "the function zero_ changes"),
    "same-part": (half_of_the_read_part, "the function zero_ changes"),
    "part-taken-later": (lambda net, y, x: first(y, y[:, 1:].zero_())[:, :, ::2], "function zero_"),
    "copy_": (lambda net, y, x: first(y, y.copy_(x)), "the function copy_ changes"),
    "foreach": (lambda net, y, x: first(y, torch._foreach_mul_([y], 2)), "the function _foreach"),
    "earlier-view": (lambda net, y, x: first(y.view(-1, 4, 8, 8), y.relu_()), "function relu_"),
    "shortcut": (lambda net, y, x: y.add_(x) + net.d(y), "the function add_"),
    "own-state": (lambda net, y, x: y + first(net.scale, net.scale.mul_(2)), "function mul_"),
    "index": (by_index, r"what the layer d \(Conv2d\) makes is assigned to by index"),
    "index-of-a-view": (by_index_of_a_view, "what the function detach makes is assigned to by in"),
    "data-assigned": (by_data, r"what the layer d \(Conv2d\) makes is assigned to by \.data"),
}  # fmt: skip


def exported(change, spec=None):
    """A network with hard weights, and its graph."""
    torch.manual_seed(0)
    net, spec = Net(change), spec or QuantSpec()
    prepare(net, spec, example=IMAGES).eval()
    with torch.no_grad():
        for weight, projection in weight_projections(net, spec).items():
            weight.copy_(projection(weight))
    return net, network_graph(net, convert(net, spec), IMAGES)


@pytest.mark.parametrize("name", RIGHT)
@torch.no_grad()
def test_a_change_whose_answer_alone_is_read_is_exported(name):
    net, graph = exported(RIGHT[name])
    torch.testing.assert_close(IntegerNetwork(graph)(IMAGES), net(IMAGES))


@pytest.mark.parametrize("name", WRONG)
def test_a_change_that_others_read_is_refused_by_name(name):
    change, what = WRONG[name]
    # to put a quantizer in the place of such a ReLU is refused before
    spec = QuantSpec(activation=ActivationSpec(bits=32)) if "relu" in what else QuantSpec()
    with pytest.raises(SpecError, match=f"{what}.*, which cannot be exported; .* new ") as caught:
        exported(change, spec)
    assert "\n" not in str(caught.value)


def test_the_reader_is_named():
    with pytest.raises(SpecError, match=r"in place that the layer r2 \(QuantizedActivation|Act"):
        exported(WRONG["add_"][0])


class Answer(nn.Module):
    """Changes its image and what it has answered already."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(3, 5)

    def forward(self, x):
        y = self.f(x.relu_().mean((2, 3)))
        F.relu(y, inplace=True)
        return y


def test_the_answer_itself_and_the_images_left_as_they_are():
    spec = QuantSpec(activation=ActivationSpec(bits=32))
    net, example = Answer(), IMAGES.clone()
    prepare(net, spec, example=IMAGES.clone())
    with pytest.raises(SpecError, match="the function relu changes the network's answer in place"):
        network_graph(net, convert(net, spec), example)
    assert torch.equal(example, IMAGES)


VIEWS = {
    "chunks": (lambda x: x.chunk(2, 1)[0], lambda x: x.chunk(2, 1)[1], False),
    "chunks-of-rows": (lambda x: x[:, :, :4], lambda x: x[:, :, 3:], True),
    "by-turns": (lambda x: x[..., ::2], lambda x: x[..., 1::2], False),
    "by-turns-that-meet": (lambda x: x[..., ::2], lambda x: x[..., ::3], True),
    "expanded": (lambda x: x[:1, :1].expand(2, 4, 8, 8), lambda x: x[1:], False),
    "unfolded": (lambda x: x.unfold(3, 3, 1), lambda x: x[..., 7:], True),
    "other-type": (lambda x: x[:1].view(torch.int16), lambda x: x[1:], True),
    "other-storage": (lambda x: x, lambda x: x.clone(), False),
    "empty": (lambda x: x, lambda x: x[:0], False),
}


@pytest.mark.parametrize("name", VIEWS)
def test_two_views_overlap_if_a_change_of_one_is_seen_in_the_other(name):
    one, other, is_shared = VIEWS[name]
    x = torch.zeros(2, 4, 8, 8)
    changed, read = one(x), other(x)
    assert overlap(_memory(changed), _memory(read)) == is_shared
    assert overlap(_memory(read), _memory(changed)) == is_shared
    if name not in ("expanded", "unfolded", "other-type"):  # torch refuses to change these
        changed.fill_(1)
        assert bool((read == 1).any()) == is_shared
