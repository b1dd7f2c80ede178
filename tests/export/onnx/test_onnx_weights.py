"""Weights packed in an ONNX file: unpacked by standard operators to the very integers."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from qat.export.onnx.weights import add_integers, per_output
from qat.export.onnx.writer import OPSET, OnnxWriter
from qat.export.packed.weight_codes import weight_codes
from qat.functional.bits import packed_size
from qat.nn.parametrization import DorefaWeight, LsqWeight
from qat.nn.weight import WeightQuantizer
from qat.spec.quant import GRID_BITS

QUANTIZERS = {
    **{f"{grid}-{bits}": WeightQuantizer(bits, grid=grid)
       for grid, every in GRID_BITS.items() for bits in every},
    **{f"lsq-{bits}": LsqWeight(bits) for bits in range(2, 9)},
    **{f"dorefa-{bits}": DorefaWeight(bits) for bits in (1, 2, 5, 8)},
}  # fmt: skip


def codes_of(name, *shape):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    quantizer = QUANTIZERS[name]
    if isinstance(quantizer, LsqWeight):
        quantizer.start(weight)
    return weight_codes(weight, quantizer)


def unpacking(weight):
    """A model whose answer is the unpacked weight, as floats in a row."""
    writer = OnnxWriter()
    integers = add_integers(writer, weight)
    floats = writer.add("Cast", [integers], to=TensorProto.FLOAT)
    row = writer.add("Reshape", [floats, writer.constant(np.array([1, -1]))])
    return writer.model((1,), (row, (weight.codes.numel(),)))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("shape", [(3, 5, 3, 3), (7, 1)])
def test_the_integers_come_back_by_two_runtimes(name, shape):
    weight = codes_of(name, *shape)
    model = unpacking(weight)
    integers, unit = weight.integers()
    torch.testing.assert_close(integers * unit, weight.levels(), rtol=0, atol=0)
    image = {"image": np.zeros((1, 1), np.float32)}
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for found in (session.run(None, image)[0], ReferenceEvaluator(model).run(None, image)[0]):
        assert found.ravel().tolist() == integers.flatten().tolist()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_file_holds_the_codes_at_their_bits(name):
    weight = codes_of(name, 64, 64)
    tensors = [numpy_helper.to_array(t) for t in unpacking(weight).graph.initializer]
    packed = [t for t in tensors if t.dtype == np.uint8 and t.size > 8]
    assert [t.size for t in packed] == [packed_size(64 * 64, weight.bits)]
    assert packed[0].ravel().tolist() == weight.packed().tolist()
    # the rest is a table of the levels and shapes
    rest = sum(t.nbytes for t in tensors) - packed[0].nbytes
    assert rest <= 4 * 2**weight.bits + 128


def test_equal_constants_are_stored_once():
    writer = OnnxWriter()
    first = writer.constant(np.arange(3, dtype=np.int32))
    assert writer.constant(np.arange(3, dtype=np.int32)) == first
    assert writer.constant(np.arange(3, dtype=np.int64)) != first
    assert writer.constant(np.arange(3, dtype=np.int32)[None]) != first
    assert writer.scalar(1) != writer.scalar(1, np.uint8)


def test_numbers_per_output_that_are_all_equal_are_one():
    writer = OnnxWriter()
    like = torch.zeros(2, 3, 1, 1)
    per_output(writer, torch.tensor([2.0, 2.0]), torch.float32, like)
    per_output(writer, torch.tensor([2.0, 3.0]), torch.int32, like)
    model = writer.model((2,), (writer.add("Identity", ["image"]), (2,)))
    found = [numpy_helper.to_array(t) for t in model.graph.initializer]
    assert [(t.shape, t.dtype.name) for t in found] == [((), "float32"), ((2, 1, 1, 1), "int32")]
    assert found[1].ravel().tolist() == [2, 3]


def test_a_model_is_of_the_standard_domain_with_a_free_batch():
    model = unpacking(codes_of("binary-1", 4, 4))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert OPSET == 18
    shape = model.graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "batch"
    assert model.producer_name == "qat"
