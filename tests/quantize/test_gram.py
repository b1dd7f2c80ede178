"""Gram matrices and means of a network's layers, against the layers themselves."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.quantize import gram
from qat.quantize.gram import columns, grams_of, output_means, passes

LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 6)),
    "linear of tokens": (nn.Linear(6, 4), (3, 5, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1)), (3, 4, 7, 8)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=1), (2, 4, 9, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 7, 7)),
    "same": (nn.Conv2d(4, 6, (2, 4), padding="same"), (2, 4, 7, 7)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 7, 7)),
}

# even kernels have more zeros behind than before, which torch finds worth a warning
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def options_of(layer):
    names = ("stride", "padding", "dilation", "groups")
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)}


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "circular"])
def test_a_layer_is_a_product_with_its_columns(name):
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    rows = columns(x, layer.weight, options_of(layer))
    weight = layer.weight.reshape(len(rows), -1, rows.shape[2])
    product = torch.einsum("gmn,grn->mgr", rows, weight).flatten(1) + layer.bias
    axis = -1 if layer.weight.ndim == 2 else 1
    torch.testing.assert_close(product, layer(x).movedim(axis, -1).flatten(0, -2))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("unfolded", [1, 1 << 24])
def test_errors_and_means_of_outputs(name, unfolded, monkeypatch):
    monkeypatch.setattr(gram, "_UNFOLDED", unfolded)
    layer, shape = LAYERS[name]
    batches = [torch.randn(shape), torch.randn(shape)]
    found = grams_of(layer, {"it": layer.weight}, batches)["it"]
    assert found.dtype == torch.float64
    change = torch.randn_like(layer.weight)
    rest = change.double().reshape(len(found), -1, found.shape[1])
    expected = 0.0
    with torch.no_grad():
        for x in batches:
            before = layer(x)
            layer.weight += change
            expected += (layer(x) - before).double().square().sum().item()
            layer.weight -= change
    assert (rest @ found * rest).sum().item() == pytest.approx(expected, rel=1e-4)
    axis = -1 if layer.weight.ndim == 2 else 1
    outputs = torch.cat([layer(x).movedim(axis, -1).flatten(0, -2) for x in batches])
    means = output_means(layer, {"it": layer.weight}, batches)["it"]
    torch.testing.assert_close(means.float(), outputs.mean(dim=0), atol=1e-5, rtol=1e-5)


class Odd(nn.Module):
    """A weight in two calls, one through a function, and one that enters no layer."""

    def __init__(self):
        super().__init__()
        self.once, self.free = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return F.linear(self.once(x), self.once.weight) @ self.free


def test_calls_of_one_weight_add_up_and_others_are_absent():
    net, x = Odd(), torch.randn(5, 4)
    found = grams_of(net, {"once": net.once.weight, "free": net.free}, [x])
    second = net.once(x).detach().double()
    torch.testing.assert_close(found["once"][0], x.double().T @ x.double() + second.T @ second)
    assert list(found) == ["once"]


def test_an_image_without_its_batch():
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(2, 6, 6)
    alone = grams_of(layer, {"it": layer.weight}, [x])["it"]
    torch.testing.assert_close(alone, grams_of(layer, {"it": layer.weight}, [x[None]])["it"])


def test_as_many_layers_at_once_as_memory_allows(monkeypatch):
    monkeypatch.setattr(gram, "_GRAMS", 20)
    weights = {name: torch.ones(7, n) for name, n in (("a", 3), ("b", 3), ("c", 9), ("d", 2))}
    assert [list(group) for group in passes(weights)] == [["a", "b"], ["c"], ["d"]]


def test_modes_and_buffers_stay():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    grams_of(net, {"0": net[0].weight}, [torch.randn(5, 4)])
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
