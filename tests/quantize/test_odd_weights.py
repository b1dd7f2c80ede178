"""Weights of odd layers: what the audit says of them is what enters, and the file answers alike."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from qat.errors import SpecError
from qat.export.packed.convert import convert
from qat.export.packed.network import load_packed, save_packed
from qat.quantize.activations import activation_quantizers
from qat.quantize.audit import audit
from qat.quantize.calibrate import start_steps
from qat.quantize.loading import load_weights
from qat.quantize.plan import project_weights, resolve
from qat.quantize.prepare import enable_quantizers, prepare
from qat.quantize.products import trace
from qat.spec.header import Header
from qat.spec.quant import QuantSpec, RuleSpec, WeightSpec

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IN_GRAPH = QuantSpec(weight=WeightSpec(bits=4, method="lsq"), rule=RuleSpec(name="float_only"))


class Flip(nn.Module):
    def forward(self, w):
        return w.flip(-1)


class Clone(nn.Module):
    def forward(self, w):
        return w.clone()


class Half(nn.Module):
    """A weight that is stored once and used twice."""

    def forward(self, w):
        return w.repeat(1, 2, 1, 1)

    def right_inverse(self, w):
        return w[:, :4].contiguous()


class Tokens(nn.Module):
    """A linear layer on tokens, which are no contiguous memory."""

    def __init__(self, normalised):
        super().__init__()
        self.layer = normalised(nn.Linear(8, 8))

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Gain(nn.Module):
    """The gain of the weight scales the answer, too."""

    def __init__(self, gain=0.9):
        super().__init__()
        self.g, self.w = nn.Parameter(torch.tensor(gain)), nn.Parameter(torch.randn(8, 8, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.w * self.g) * self.g


class Swapped(nn.Conv2d):
    """The weight's data are others for the time of the call."""

    def forward(self, x):
        kept = self.weight.data
        self.weight.data = kept - kept.mean((1, 2, 3), keepdim=True)
        out = super().forward(x)
        self.weight.data = kept
        return out


class Scaled(nn.Conv2d):
    """As in NFNets: the gain of the weight starts at 0."""

    def __init__(self, gain=0.0):
        super().__init__(8, 8, 3, padding=1)
        self.gain = nn.Parameter(torch.full((8, 1, 1, 1), gain))

    def forward(self, x):
        w = F.batch_norm(self.weight.reshape(1, 8, -1), None, None, training=True)
        return self._conv_forward(x, w.reshape_as(self.weight) * self.gain, self.bias)


class TwoMade(nn.Module):
    """Two weights are made, one of a parameter that multiplies as it is as well."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(8, 8, 1, 1)) for _ in range(2))

    def forward(self, x):
        y = F.conv2d(F.relu(F.conv2d(x, self.a - self.a.mean())), self.b - self.b.mean())
        return F.conv2d(F.relu(y), self.b)


def by(parametrization):
    layer = nn.Conv2d(8, 8, 3, padding=1)
    parametrize.register_parametrization(layer, "weight", parametrization)
    return layer


LAYERS = {
    "flip": lambda: by(Flip()),
    "clone": lambda: by(Clone()),
    "half": lambda: by(Half()),
    "spectral tokens": lambda: Tokens(parametrizations.spectral_norm),
    "normalised tokens": lambda: Tokens(parametrizations.weight_norm),
    "gain": Gain,
    "swapped": lambda: Swapped(8, 8, 3, padding=1),
    "scaled": Scaled,
    "two made": TwoMade,
}


def network(middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), middle(), nn.ReLU(), nn.Conv2d(8, 2, 1))


def prepared(middle, spec):
    net = prepare(network(middle), spec, example=IMAGES)
    start_steps(net, spec, [IMAGES])
    project_weights(net, spec)
    return net.eval()


def entering(net):
    """Name of each module that makes one product -> number of values in its weight."""
    found = {}

    def see(product):
        if product.weight_tensor is not None:
            found.setdefault(product.module, []).append(len(product.weight_tensor.unique()))

    trace(net, IMAGES, watch=see)
    return {name: counts[0] for name, counts in found.items() if len(counts) == 1}


@pytest.mark.filterwarnings("ignore:only .* of the")
@pytest.mark.parametrize("spec", [QuantSpec(), IN_GRAPH], ids=["update", "lsq"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_file_holds_what_enters(name, spec, tmp_path):
    net = prepared(LAYERS[name], spec)
    found, seen = audit(net, spec, IMAGES), entering(net)
    for layer in found.layers:
        if layer.grid and layer.name in seen:
            assert seen[layer.name] <= layer.levels
    assert found.bytes > 0
    save_packed(tmp_path / "file", convert(net, spec), Header(quant=spec))
    with torch.no_grad():
        for p in net.parameters():  # of the file alone
            assert p.isfinite().all()
        loaded = load_packed(tmp_path / "file", model=network(LAYERS[name])).net
        assert torch.equal(loaded(IMAGES), net(IMAGES))


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_weight_has_its_own_shape_on_tokens_too(batch):
    net = network(LAYERS["spectral tokens"])
    prepare(net, QuantSpec(), example=torch.randn(batch, 3, 8, 8))
    found = {layer.name: layer.weights for layer in audit(net, _off(net), IMAGES).layers}
    assert found["2.layer"] == 64


def _off(net):
    project_weights(net, QuantSpec())
    return QuantSpec()


def test_the_plan_does_not_depend_on_values():
    plans = []
    for gain in (0.0, 0.5):
        net = prepare(network(lambda gain=gain: Scaled(gain)), QuantSpec(), example=IMAGES)
        plans.append({n: w.spec.bits for n, w in resolve(net, QuantSpec()).weights.items()})
    assert plans[0] == plans[1] == dict.fromkeys(("0", "2", "4"), 1)


class Zeros(nn.Conv2d):
    """A weight with zeros that someone has written into it."""

    def __init__(self, way):
        super().__init__(8, 8, 3, padding=1)
        self.way = way
        self.register_buffer("mask", torch.arange(8 * 8 * 9).reshape(8, 8, 3, 3) % 3 > 0)

    def forward(self, x):
        return self._conv_forward(x, ZEROS[self.way](self.weight, self.mask), self.bias)


def _diagonal(w, mask):
    z = torch.zeros_like(w)
    z[:4, :4], z[4:, 4:] = w[:4, :4], w[4:, 4:]
    return z


ZEROS = {
    "where, a number": lambda w, m: torch.where(m, w, 0.0),
    "where, zeros": lambda w, m: torch.where(m, w, torch.zeros_like(w)),
    "product": lambda w, m: w * m,
    "filled": lambda w, m: w.masked_fill(~m, 0.0),
    "beside zeros": lambda w, m: torch.cat([w[:, :4], torch.zeros_like(w[:, 4:])], 1),
    "diagonal": _diagonal,
}


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("way", ZEROS)
@pytest.mark.filterwarnings("ignore:only .* of the")
def test_zeros_of_a_mask_are_levels_or_the_weight_is_float(way, bits):
    spec = QuantSpec(weight=WeightSpec(bits=bits))
    net = prepared(lambda: Zeros(way), spec)
    rows = {layer.name: layer for layer in audit(net, spec, IMAGES).layers}
    if bits == 1:
        assert rows["2"].weight_bits == 32
        assert "makes zeros, which its grid has not" in rows["2"].reason
    else:
        assert rows["2"].levels == entering(net)["2"] == 3


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight * torch.sigmoid(x.mean()), padding=1)


class Dynamic(nn.Module):
    """Dynamic convolution, arXiv:1912.03458: kernels mixed by a sum of products entry by entry."""

    def __init__(self):
        super().__init__()
        self.route, self.weight = nn.Linear(8, 4), nn.Parameter(torch.randn(4, 8, 8, 3, 3))

    def forward(self, x):
        n = len(x)
        shares = self.route(x.mean((2, 3))).softmax(1)
        w = (shares[:, :, None, None, None, None] * self.weight).sum(1).reshape(n * 8, 8, 3, 3)
        return F.conv2d(x.reshape(1, n * 8, 8, 8), w, padding=1, groups=n).view(n, 8, 8, 8)


@pytest.mark.parametrize("middle", [Gated, Dynamic])
def test_what_the_image_mixes_into_a_weight_is_a_float_weight(middle):
    torch.manual_seed(0)
    net = network(middle)
    with pytest.warns(UserWarning, match=r"only .* of the .* weights"):
        prepare(net, QuantSpec(), example=IMAGES)
    project_weights(net, QuantSpec())
    found = audit(net, QuantSpec(), IMAGES)
    row = next(layer for layer in found.layers if layer.name == "2")
    assert row.weights == net[2].weight.numel()
    assert "multiplies by what is made of it" in row.reason
    # what the kernels are mixed by makes them, too
    others = net[2].route.weight.numel() if middle is Dynamic else 0
    few = 24 + 16
    assert found.quantized_share == few / (few + net[2].weight.numel() + others)


class Twice(nn.Module):
    """A block that runs twice, or is checkpointed twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.reentrant = nn.Conv2d(3, 4, 1), None
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        x = self.stem(x)
        for _ in range(2):
            if self.reentrant is None:
                x = self.block(x)
            else:
                x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return x


def test_a_shared_block_cannot_be_checkpointed_by_itself():
    net = prepare(Twice(), QuantSpec(), example=IMAGES)
    net(IMAGES).sum().backward()
    net.reentrant = True
    with pytest.raises(SpecError, match="checkpointing runs a part of the network again"):
        net(IMAGES).sum().backward()
    whole = checkpoint(copy.deepcopy(net).requires_grad_(True), IMAGES, use_reentrant=False)
    assert whole.shape == (2, 4, 8, 8)


class AbsoluteConv(nn.Conv2d):
    def forward(self, input):
        return super().forward(input.abs())


class NamedConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x)


class ShortcutConv(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) + input


class Called(nn.Module):
    def __init__(self, kind, **named):
        super().__init__()
        self.a, self.b, self.keyword = nn.Conv2d(3, 4, 1), kind(4, 4, 1), named["keyword"]

    def forward(self, x):
        h = F.gelu(self.a(x))
        return self.b(**{self.keyword: h}) if self.keyword else self.b(h)


@pytest.mark.parametrize(
    ("kind", "keyword"),
    [(AbsoluteConv, ""), (AbsoluteConv, "input"), (NamedConv, "x"), (ShortcutConv, "")],
)
def test_what_a_layer_multiplies_is_quantized_and_not_what_enters_it(kind, keyword):
    torch.manual_seed(0)
    net = Called(kind, keyword=keyword).eval()
    expected = net(IMAGES)
    prepare(net, QuantSpec(), example=IMAGES)
    assert list(activation_quantizers(net)) == ["b.call_sites.conv2d_0"]
    assert net.b.call_sites["conv2d_0"].signed == (kind is not AbsoluteConv)
    start_steps(net, QuantSpec(), [IMAGES])
    net(IMAGES).sum().backward()
    enable_quantizers(net, False)
    assert torch.equal(net(IMAGES), expected)


def test_hooks_on_a_relu_stay():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    net[1].register_forward_hook(lambda module, args, out: out * 2)
    expected = net(IMAGES)
    prepare(net, QuantSpec(), example=IMAGES)
    assert "1.call_sites.relu_0" in activation_quantizers(net)
    enable_quantizers(net, False)
    assert torch.equal(net(IMAGES), expected)


def test_a_child_of_the_layer_s_own_keeps_its_name():
    class Own(nn.Conv2d):
        def __init__(self):
            super().__init__(4, 4, 1)
            self.input_quantizer = nn.BatchNorm2d(4)

        def forward(self, x):
            return super().forward(self.input_quantizer(x))

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), Own())
    prepare(net, QuantSpec(), example=IMAGES)
    assert isinstance(net[2].input_quantizer, nn.BatchNorm2d)
    assert list(activation_quantizers(net)) == ["2.call_sites.conv2d_0"]


def test_a_module_of_two_names_loads_its_float_state():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.layer(F.relu(x))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a = nn.Conv2d(3, 4, 1), Block()
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(self.stem(x)))

    net = Two()
    state = copy.deepcopy(net.state_dict())
    prepare(net, QuantSpec(), example=IMAGES)
    names = [f"{one}.call_sites.relu_{n}.step" for one in "ab" for n in range(2)]
    assert sorted(load_weights(net, state)) == names
    assert load_weights(net, net.state_dict()) == []


class EachImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return torch.cat([self.layer(F.relu(self.stem(image[None]))) for image in x])


def test_a_loop_over_the_images_is_refused():
    with pytest.raises(SpecError, match="makes more calls for 3 images than for 2"):
        prepare(EachImage(), QuantSpec(), example=IMAGES)


class Branches(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way, self.stem, self.layer = way, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x, targets=None):
        return self.way(self, x, targets)


def _with_targets(net, x, targets):
    assert targets is not None or not net.training
    return net.layer(F.relu(net.stem(x)))


def _with_auxiliary(net, x, targets):
    out = net.layer(F.relu(net.stem(x)))
    return (out, net.layer(F.relu(out))) if net.training else out


def test_a_forward_may_do_more_in_training():
    net = prepare(Branches(_with_auxiliary), QuantSpec(), example=IMAGES)
    assert "call_sites.relu_0" in activation_quantizers(net)


def test_a_forward_that_wants_targets_is_not_checked_and_that_is_said():
    with pytest.warns(UserWarning, match="could not run the network in training mode"):
        net = prepare(Branches(_with_targets), QuantSpec(), example=IMAGES)
    assert "call_sites.relu_0" in activation_quantizers(net)


def test_extra_state_is_kept_or_refused_in_a_sentence():
    class Versioned(nn.Sequential):
        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            pass

    net = Versioned(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    state = copy.deepcopy(net.state_dict())
    prepare(net, QuantSpec(), example=IMAGES)
    assert load_weights(net, state) == ["1.step"]
    project_weights(net, QuantSpec())
    with pytest.raises(SpecError, match="_extra_state is no tensor"):
        convert(net, QuantSpec())


class Penalised(nn.Module):
    """In training a ReLU more, before the one of both modes."""

    def __init__(self):
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        if self.training:
            self.penalty = F.relu(-x - 5).mean()
        return self.layer(F.relu(x))


def test_a_call_more_in_front_is_refused():
    with pytest.raises(SpecError, match="other functions in training than in evaluation"):
        prepare(Penalised(), QuantSpec(), example=IMAGES)


MASKS = {
    "parameter": lambda w, m: w * m,
    "threshold": lambda w, m: w * (w.abs() > w.abs().median()),
    "shrunk": lambda w, m: F.hardshrink(w, float(w.detach().abs().median())),
    "written": lambda w, m: w.clone().index_put_((m == 0,), torch.zeros(())),
    "triangle": lambda w, m: torch.tril(w),
}


@pytest.mark.filterwarnings("ignore:only .* of the")
@pytest.mark.parametrize("name", MASKS)
def test_zeros_among_the_weights_of_a_row_are_seen_however_they_came(name):
    class Masked(nn.Conv2d):
        def __init__(self):
            super().__init__(8, 8, 3, padding=1)
            mask = (torch.arange(8 * 8 * 9).reshape(8, 8, 3, 3) % 3 > 0).float()
            self.mask = nn.Parameter(mask, requires_grad=False)

        def forward(self, x):
            return self._conv_forward(x, MASKS[name](self.weight, self.mask), self.bias)

    net = network(Masked)
    prepare(net, QuantSpec(), example=IMAGES)
    project_weights(net, QuantSpec())
    row = next(layer for layer in audit(net, QuantSpec(), IMAGES).layers if layer.name == "2")
    assert (row.weight_bits, row.grid) == (32, "")


class Entering(nn.Module):
    """What the weight is made of enters in another way, too."""

    def __init__(self, way):
        super().__init__()
        self.way, self.lin = way, nn.Linear(8, 8)
        self.w, self.g = nn.Parameter(torch.randn(8, 8, 1, 1)), nn.Parameter(torch.tensor(1.3))
        self.register_buffer("u", torch.ones(8) / 8)

    def forward(self, x):
        return ENTERING[self.way](self, x)


def _normalised(net, x):
    sigma = net.u @ (net.w.flatten(1) @ net.u)
    return F.conv2d(x, net.w / sigma) * sigma


ENTERING = {
    "as an input": lambda net, x: (
        F.conv2d(x, net.w - net.w.mean()) + net.lin(net.w.flatten(1)).mean(0)[None, :, None, None]
    ),
    "by a product": _normalised,
    "as a gain": lambda net, x: F.conv2d(x, net.w * net.g) + net.g,
}


@pytest.mark.filterwarnings("ignore:only .* of the")
@pytest.mark.parametrize("way", ENTERING)
def test_what_enters_in_another_way_stays_in_the_file(way, tmp_path):
    net = prepared(lambda: Entering(way), QuantSpec())
    save_packed(tmp_path / "file", convert(net, QuantSpec()), Header(quant=QuantSpec()))
    twin = network(lambda: Entering(way))
    with torch.no_grad():
        for parameter in twin[2].parameters():
            parameter.mul_(0.5)
        loaded = load_packed(tmp_path / "file", model=twin).net
        assert torch.equal(loaded(IMAGES), net(IMAGES))


class Prototypes(nn.Module):
    """Features are the second operand of a linear function, prototypes the first."""

    def __init__(self):
        super().__init__()
        self.stem, self.q = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        t = F.normalize(self.stem(x).mean((2, 3)), dim=1)
        return F.linear(F.normalize(self.q, dim=1), t).t()


@pytest.mark.filterwarnings("ignore:only .* of the")
def test_features_in_the_place_of_a_weight_get_no_grid_of_weights():
    net = prepare(Prototypes(), QuantSpec(), example=IMAGES)
    project_weights(net, QuantSpec())
    rows = {layer.name: layer for layer in audit(net, QuantSpec(), IMAGES).layers}
    assert rows["q"].weights == 40
    assert "makes the weight of it" in rows["q"].reason
    assert len(net(IMAGES).unique()) > 5


class Fused(nn.Module):
    """ReLUs of parameters: a weight, and gains of a sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.w = nn.Parameter(torch.tensor([1.0, 0.3]))

    def forward(self, x):
        gains, h = F.relu(self.w), F.gelu(self.a(x))
        return F.conv2d(gains[0] * h + gains[1] * h.flip(1), F.relu(self.b.weight))


def test_a_relu_of_parameters_is_none_of_an_activation():
    with pytest.warns(UserWarning, match="stays float is one of the network itself"):
        net = prepare(Fused(), QuantSpec(), example=IMAGES)
    assert not [name for name in activation_quantizers(net) if "relu" in name]


@pytest.mark.parametrize(
    "forward",
    [
        lambda layer, x: torch.cat([x, layer.own(x)], 1),
        lambda layer, x: (layer.own(x), x),
        lambda layer, x: layer.own(x) + layer.norm(x),
    ],
    ids=["beside", "given back", "by a child"],
)
def test_an_input_that_passes_through_is_not_quantized(forward):
    class Passing(nn.Conv2d):
        def __init__(self):
            super().__init__(4, 4, 1)
            self.norm = nn.BatchNorm2d(4)

        def own(self, x):
            return super().forward(x)

        def forward(self, x):
            return forward(self, x)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), Passing()).eval()
    prepare(net, QuantSpec(), example=IMAGES)
    assert list(activation_quantizers(net)) == ["2.call_sites.conv2d_0"]


def test_hooks_need_an_example():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    net[1].register_full_backward_pre_hook(lambda module, grad: None)
    with pytest.raises(SpecError, match="1 has hooks"):
        prepare(net, QuantSpec())


def test_a_part_that_never_had_its_quantizers_runs_again_without_them():
    net = prepare(Twice(), QuantSpec(), example=IMAGES)
    checkpoint(net.block, net.stem(IMAGES), use_reentrant=True).sum().backward()
    assert net.stem.weight.grad is not None
