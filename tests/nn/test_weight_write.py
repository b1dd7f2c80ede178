"""`WeightQuantizer.write`: many weights at once, bit for bit as one by one."""

import pytest
import torch

from qat import set_runtime
from qat.errors import SpecError
from qat.functional.weight_codes import codes_of
from qat.nn.weight import WeightQuantizer
from qat.spec.quant import GRID_BITS

GRIDS = [("binary", 1), ("ternary", 2), ("ternary_threshold", 2), ("uniform", 2), ("uniform", 8)]
GRIDS += [("power_of_two", 2), ("power_of_two", 4)]
SHAPES = [(16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (64, 64, 3, 3), (10, 64)]
SHAPES += [(64, 64, 3, 3), (1, 1), (7,), (256, 70, 3, 3), (144, 4)]


def weights(seed=0):
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=make) * 10.0 ** -(i % 3) for i, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("grid", "bits"), GRIDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_together_is_one_by_one(granularity, grid, bits, threads):
    quantizer = WeightQuantizer(bits, granularity, grid)
    own = weights()
    own[4] = own[4].to(memory_format=torch.channels_last)
    own[5] = own[5].double()
    own[6] = own[6][:, ::2].clone()
    before, kept = [w.clone() for w in own], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        targets = [torch.empty_like(w) for w in own]
        addresses = [t.data_ptr() for t in targets]
        quantizer.write(own, targets)
        for w, copy, target, address in zip(own, before, targets, addresses, strict=True):
            assert torch.equal(w, copy)
            assert target.data_ptr() == address
            assert torch.equal(target, quantizer(w))
            codes, scale = quantizer.encode(w)
            assert torch.equal(target, quantizer.decode(codes, scale, dtype=w.dtype))
    finally:
        torch.set_num_threads(kept)


def test_targets_of_another_layout_or_dtype_get_the_same():
    quantizer = WeightQuantizer(4)
    w = torch.randn(64, 130, 3, 3, generator=torch.Generator().manual_seed(1))
    other = torch.empty_like(w, memory_format=torch.channels_last)
    double = torch.empty_like(w, dtype=torch.float64)
    quantizer.write([w, w], [other, double])
    assert torch.equal(other, quantizer(w))
    assert torch.equal(double, quantizer(w).double())


def test_nothing_and_wrong_weights():
    WeightQuantizer(1).write([], [])
    with pytest.raises(SpecError, match="empty"):
        WeightQuantizer(1).write([torch.empty(0, 3)], [torch.empty(0, 3)])
    with pytest.raises(SpecError, match="scalar"):
        WeightQuantizer(1, "channel").write([torch.ones(())], [torch.ones(())])


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("grid", "bits"), GRIDS)
def test_meta_weights_are_written(granularity, grid, bits):
    """No number is looked at where there is none to see; a device would have to be waited for."""
    own = [torch.empty(shape, device="meta") for shape in [*SHAPES, (512, 512, 3, 3)]]
    WeightQuantizer(bits, granularity, grid).write(own, [torch.empty_like(w) for w in own])


@pytest.mark.parametrize(("grid", "bits"), GRIDS)
def test_a_projection_is_traced_whole(grid, bits):
    """As weights that a network makes in its forward are; the graph is that of any size."""
    quantizer = WeightQuantizer(bits, "tensor", grid)
    w = torch.randn(70, 1000, generator=torch.Generator().manual_seed(2))
    traced = torch.compile(quantizer, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(w), quantizer(w), rtol=1e-5, atol=0)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("grid", "bits"), [(g, b) for g, all_ in GRID_BITS.items() for b in all_])
def test_products_are_told_the_scale(grid, bits, granularity):
    """What is written is a whole number of times the scale, or no scale is told."""
    quantizer = WeightQuantizer(bits, granularity, grid)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(8, n, 3, 3, generator=generator) for n in (4, 4, 1100)]
    weights.append(torch.randn(8, 1100, 3, 3, generator=generator).transpose(0, 1))
    targets = [w.clone() for w in weights]
    with set_runtime(integer_forward="on"):
        quantizer.write(weights, targets)
        found = [codes_of(target, search=False) for target in targets]
    if grid == "power_of_two" and bits > 4:
        assert found == [None] * 4
        return
    for codes, target in zip(found, targets, strict=True):
        assert codes is not None
        assert torch.equal(codes.codes * codes.scale.view(-1, 1, 1, 1), target)
