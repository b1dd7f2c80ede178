"""The audit of a toy network against numbers computed by hand."""

import pytest
import torch
from torch import nn

from qat.errors import NotOnGridError, percent
from qat.nn.parametrization import LsqWeight
from qat.nn.weight import WeightQuantizer
from qat.quantize.audit import audit
from qat.quantize.audit_table import audit_table
from qat.quantize.audit_weights import check_on_grid
from qat.quantize.plan import weight_projections
from qat.quantize.prepare import prepare
from qat.spec.quant import ActivationSpec, EndsSpec, Override, QuantSpec, WeightSpec

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(spec):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    return prepare(net, spec, example=IMAGES)


def hard(net, spec):
    with torch.no_grad():
        for parameter, projection in weight_projections(net, spec).items():
            parameter.copy_(projection(parameter))
    return net


def audited(spec):
    return audit(hard(network(spec), spec), spec, IMAGES)


def test_totals_by_hand():
    result = audited(QuantSpec(ends=EndsSpec(last="float")))
    weights = (36, 288, 80)
    assert [layer.weights for layer in result.layers] == list(weights)
    assert [layer.weight_bits for layer in result.layers] == [1, 1, 32]
    assert [layer.input_bits for layer in result.layers] == [32, 4, 32]
    macs = (8 * 8 * 36, 4 * 4 * 288, 80)
    assert [layer.macs for layer in result.layers] == list(macs)
    assert result.bits == pytest.approx((36 + 288 + 80 * 32) / 404)
    assert result.quantized_share == pytest.approx(324 / 404)
    # biases 4 + 10, two norms with 4 vectors each, two steps; 4 bytes for each
    residue = 14 + 4 * (4 + 8) + 2
    assert result.float_bytes == 4 * (404 + residue)
    assert result.bytes == (324 + 32 * 80 + 7) // 8 + 4 * (residue + 2)  # and two scales
    assert result.bops == macs[0] * 1 * 32 + macs[1] * 1 * 4 + macs[2] * 32 * 32
    assert result.ace == macs[0] * 1 * 16 + macs[1] * 1 * 4 + macs[2] * 16 * 16
    assert result.other == {"vectors": (14 + 2 * (4 + 8) + 2, "bias, normalisation or step")}


def test_layers_by_hand():
    spec = QuantSpec(
        weight=WeightSpec(bits=2, granularity="channel"),
        overrides=(Override(match="3", weight={"bits": 4, "granularity": "tensor"}),),
    )
    net = hard(network(spec), spec)
    first, second, last = audit(net, spec, IMAGES).layers
    assert (first.grid, second.grid, last.grid) == ("ternary", "uniform", "ternary")
    assert (first.levels, last.levels) == (3, 3)
    assert second.levels == len(net[3].weight.unique()) <= 15
    mean = torch.stack([row.abs().max() for row in net[0].weight.detach()]).mean()
    assert first.scale == pytest.approx(mean.item(), rel=1e-6)
    assert (first.source, second.source, last.source) == ("image", "quantized", "pooled")
    assert "quant.input_bits" in first.input_reason
    assert second.input_reason == second.reason == ""
    assert "average" in last.input_reason


def test_scales_per_channel_are_counted():
    per_tensor = audited(QuantSpec())
    per_channel = audited(QuantSpec(weight=WeightSpec(granularity="channel")))
    assert per_channel.bytes - per_tensor.bytes == 4 * (4 + 8 + 10 - 3)


def test_input_bits_count():
    result = audited(QuantSpec(input_bits=8))
    assert result.layers[0].input_bits == 8
    assert result.layers[0].source == "quantized"


def test_a_float_network():
    spec = QuantSpec(activation=ActivationSpec(bits=32), ends=EndsSpec(first="float"))
    result = audited(spec)
    assert result.layers[0].grid == ""
    assert result.layers[0].reason == "ends.first=float"
    assert result.layers[1].input_reason == "no quantizer on its way"


@pytest.mark.parametrize("value", [0.0, 0.5, 3.0, float("nan")])
def test_a_third_value_in_a_binary_layer(value):
    spec = QuantSpec()
    net = hard(network(spec), spec)
    with torch.no_grad():
        net[3].weight[0, 0, 0, 0] = value
    with pytest.raises(NotOnGridError, match=r"^3: 3 different values .* 2 levels"):
        audit(net, spec, IMAGES)


def test_latent_weights_are_not_on_the_grid():
    spec = QuantSpec(weight=WeightSpec(bits=4))
    with pytest.raises(NotOnGridError, match=r"^0: 36 different values .* QuantOptimizer puts it"):
        audit(network(spec), spec, IMAGES)


@pytest.mark.parametrize(
    ("bits", "grid"), [(1, None), (2, None), (4, None), (8, None), (4, "power_of_two")]
)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_every_grid_passes_its_own_check(bits, grid, granularity):
    quantizer = WeightQuantizer(bits, granularity, grid)
    w = quantizer(torch.randn(5, 40, generator=torch.Generator().manual_seed(bits)) * 0.1)
    levels, scale = check_on_grid("w", w, quantizer)
    assert 2 <= levels <= len(quantizer.levels)
    assert scale > 0
    w[2, 3] += 0.03 * scale
    with pytest.raises(NotOnGridError, match=f"the {quantizer.kind} grid"):
        check_on_grid("w", w, quantizer)


def test_all_products_of_attention_are_rows():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.act = nn.Linear(8, 8), nn.ReLU()
            self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            x = self.act(self.embed(x.squeeze(1)))
            return self.head(self.attend(x, x, x)[0])

    spec = QuantSpec()
    net = hard(prepare(Attention(), spec, example=IMAGES), spec)
    result = audit(net, spec, IMAGES)
    rows = {layer.name: layer for layer in result.layers}
    tokens = 8
    for name, count in (("attend.in_proj_weight", 3 * 8 * 8), ("attend.out_proj", 8 * 8)):
        row = rows[name]
        assert (row.weights, row.weight_bits, row.macs) == (count, 1, tokens * count)
    both = rows["attend.multi_head_attention_forward"]
    assert (both.weights, both.weight_bits, both.reason) == (0, 32, "two activations")
    assert both.macs == 2 * tokens * tokens * 8
    assert result.quantized_share == 1
    # the projection within the function cannot be reached; the one before it is fed by the ReLU
    assert rows["attend.in_proj_weight"].input_bits == rows["head"].input_bits == 4
    assert "inside multi_head_attention_forward" in rows["attend.out_proj"].input_reason
    on_grids = rows["attend.in_proj_weight"].macs + rows["head"].macs
    assert result.product_share == on_grids / result.macs


def test_transposed_and_recurrent_weights_are_quantized():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(1, 4, 3), nn.ReLU()
            self.up, self.head = nn.ConvTranspose2d(4, 2, 2, 2), nn.Linear(5, 3)
            self.memory = nn.LSTM(12, 5, batch_first=True)

        def forward(self, x):
            x = self.up(self.act(self.conv(x))).flatten(1, 2)
            return self.head(self.memory(x)[0][:, -1])

    spec = QuantSpec()
    net = hard(prepare(Net(), spec, example=IMAGES), spec)
    result = audit(net, spec, IMAGES)
    assert result.quantized_share == 1
    rows = {layer.name: layer for layer in result.layers}
    steps, pixels = 24, 36
    assert rows["up"].macs == pixels * 4 * 2 * 2 * 2
    assert rows["up"].input_bits == 4
    assert rows["memory.weight_ih_l0"].macs == steps * 20 * 12
    assert rows["memory.weight_hh_l0"].macs == steps * 20 * 5
    assert "inside lstm" in rows["memory.weight_hh_l0"].input_reason
    assert set(result.other) == {"vectors"}


def test_tied_weights_are_stored_once():
    spec = QuantSpec()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    net[3].weight = net[1].weight
    result = audit(hard(prepare(net, spec, example=IMAGES), spec), spec, IMAGES)
    assert result.float_bytes == 4 * (64 * 64 + 128 + 1)
    assert result.bytes == 64 * 64 // 8 + 4 * (128 + 1 + 1)
    assert result.bops == 64 * 64 * (1 * 32 + 1 * 4)  # but computed twice


def test_the_table_has_a_row_per_layer_and_the_totals():
    spec = QuantSpec(ends=EndsSpec(last="float"))
    result = audited(spec)
    table = audit_table(result)
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["0", "3", "8"]
    assert lines[3].split()[1:4] == ["1", "binary", "2"]
    assert lines[4].split()[1:4] == ["32", "float", "-"]
    assert "float weight:  8: ends.last=float (19.8 % of the weights)" in table
    image = 100 * result.layers[0].macs / result.macs
    assert f"0: network input; set quant.input_bits to quantize it ({image:.1f} % of the" in table
    assert f"{result.bytes:,} bytes packed, {result.float_bytes:,} as float" in table
    assert "80.20 % of the weights that enter products on their grids" in table
    both = result.layers[1].macs / result.macs
    assert f"{100 * both:.2f} % of the multiplications with both operands on grids" in table
    assert all(line == line.rstrip() for line in lines)


def test_plain_values():
    data = audited(QuantSpec()).to_dict()
    assert data["layers"][0]["name"] == "0"
    assert isinstance(data["bytes"], int)


def test_auditing_changes_nothing():
    spec = QuantSpec()
    net = hard(network(spec), spec)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    audit(net, spec, IMAGES)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("codes", [[-8, 3, 0, -1], [7, -8, 1, 2], [7, 3, -2, 1], [-5, 2, 4, 0]])
def test_a_grid_that_is_not_symmetric_is_recognised(codes):
    quantizer = LsqWeight(4)  # codes -8 .. 7: the largest value may be negative
    weight = torch.tensor(codes, dtype=torch.float32) * 0.0517
    levels, scale = check_on_grid("layer", weight, quantizer)
    assert levels == len(set(codes))
    # the scale is known up to a common factor of the codes that are worn
    ratio = torch.tensor(codes) * 0.0517 / scale
    assert (ratio - ratio.round()).abs().max() < 1e-4
    with pytest.raises(NotOnGridError, match="layer"):
        check_on_grid("layer", weight + torch.tensor([0.0, 0.01, 0.0, 0.0]), quantizer)


class Deep(nn.Module):
    """Three stages of many blocks, and attention between them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.stages = nn.Sequential(*(self.stage() for _ in range(3)))
        self.head = nn.Linear(4, 3)

    @staticmethod
    def stage():
        return nn.Sequential(*(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)) for _ in range(20)))

    def forward(self, x):
        x = self.stages(self.stem(x)).flatten(2)
        return self.head((x.transpose(1, 2) @ x @ x.transpose(1, 2)).mean(1))


def test_many_layers_are_shown_by_stage_and_their_reasons_together():
    spec = QuantSpec(overrides=(Override(match="stages.1.*", weight={"bits": 32}),))
    net = hard(prepare(Deep(), spec, example=IMAGES), spec)
    result = audit(net, spec, IMAGES)
    assert len(result.layers) == 1 + 60 + 1 + 1
    lines = audit_table(result).splitlines()
    assert [" ".join(line.split()[:4]) for line in lines[2:8]] == [
        "stem 1 binary 2",
        "stages.0 (20) 1 binary",
        "stages.1 (20) 32 float",
        "stages.2 (20) 1 binary",
        "matmul 32 float -",
        "head 1 binary 2",
    ]
    floats = [line for line in lines if line.startswith("float weight:")]
    assert len(floats) == 1
    assert "stages.1.0.1, stages.1.1.1, stages.1.2.1 and 17 more: override match=" in floats[0]
    products = [line for line in lines if line.startswith("float product:")]
    share = 100 * 2 * 64 * 64 * 4 / result.macs
    assert products == [
        f"float product: matmul: two activations ({share:.1f} % of the multiplications)"
    ]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.00 %"), (1e-9, "0.01 %"), (0.5, "50.00 %"), (0.999999, "99.99 %"), (1, "100.00 %")],
)
def test_all_is_said_of_all_only(share, text):
    assert percent(share) == text
