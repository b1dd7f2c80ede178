"""The QONNX form, executed by the definition of its two operators, is the network in integers."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from qat.errors import SpecError
from qat.export.integer.network import IntegerNetwork
from qat.export.onnx.qonnx import qonnx_model
from support.exported import SPECS, exported, images, resnet8

UNEVEN = ("power-of-two", "pact")  # the weights of the latter are DoReFa's


class Quant(OpRun):
    op_domain = "qonnx.custom_op.general"

    def _run(self, x, scale, zero, bits, narrow=None, rounding_mode=None, signed=None):
        low = -(2.0 ** (bits - 1)) + narrow if signed else 0.0
        high = 2.0 ** (bits - signed) - 1 - (narrow if not signed else 0)
        rounded = {"CEIL": np.ceil, "ROUND": np.round}[rounding_mode](x / scale + zero)
        return (((np.clip(rounded, low, high)) - zero) * scale).astype(np.float32)


class BipolarQuant(OpRun):
    op_domain = "qonnx.custom_op.general"

    def _run(self, x, scale):
        return (np.where(x >= 0, 1, -1) * scale).astype(np.float32)


for operator in (Quant, BipolarQuant):  # the evaluator wants a tuple of outputs
    operator._run = (lambda run: lambda self, *a, **k: (run(self, *a, **k),))(operator._run)


@pytest.mark.parametrize("name", [name for name in SPECS if name not in UNEVEN])
def test_it_is_the_network_in_integers(name):
    graph = exported(resnet8, SPECS[name])[1]
    model = qonnx_model(graph, metadata={"classes": "[]"})
    domains = {opset.domain: opset.version for opset in model.opset_import}
    assert domains == {"": 18, "qonnx.custom_op.general": 1}
    x = images(2)
    found = ReferenceEvaluator(model, new_ops=[Quant, BipolarQuant]).run(None, {"image": x.numpy()})
    np.testing.assert_allclose(found[0], IntegerNetwork(graph)(x).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", UNEVEN)
def test_levels_that_are_not_even_are_refused(name):
    with pytest.raises(SpecError, match=r"levels of conv1 are not evenly spaced.*format=onnx"):
        qonnx_model(exported(resnet8, SPECS[name])[1])
