"""ONNX writer: collects the nodes and constants of a model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qat.errors import SpecError
from qat.export.onnx.allowed import OPERATORS, OPSET

IR_VERSION = 9


class OnnxWriter:
    """A growing ONNX graph; equal constants are stored once.

    Args:
        prefix: of the names that are made up, where nodes from elsewhere have names, too.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._count = 0

    def add(self, op: str, inputs: Sequence[str], *, name: str = "", **attributes: Any) -> str:
        """Add a node of one output and return that; an empty input is one left out.

        Args:
            op: operator.
            inputs: names of its inputs.
            name: of the output; "" makes one up.
            attributes: of the operator; `domain` is that of an operator beyond the standard.
        """
        assert op in OPERATORS or attributes.get("domain")  # else the file could not be opened
        output = name or self._fresh(op)
        self._nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def copy(self, node: onnx.NodeProto) -> None:
        """Add a node that another graph has, its names as they are.

        What the exporter says of the source behind it, with paths of this machine, is left out.

        Raises:
            SpecError: an operator that the reader of our files does not know.
        """
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            where = f" in the domain {node.domain}" if node.domain else ""
            raise SpecError(
                f"the network needs the ONNX operator {node.op_type}{where}, which files of ours "
                "do not hold; ship the packed file"
            )
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        self._nodes.append(node)

    def keep(self, initializers: Iterable[onnx.TensorProto]) -> dict[str, str]:
        """Add constants that another graph has; of equal ones the first, whose name each gets."""
        first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
        names = {}
        for tensor in initializers:
            data = numpy_helper.to_array(tensor).tobytes()
            name = first.setdefault((tensor.data_type, tuple(tensor.dims), data), tensor.name)
            names[tensor.name] = name
            if name == tensor.name:
                tensor.ClearField("doc_string")
                self._initializers.append(tensor)
        return names

    def constant(self, value: NDArray[Any]) -> str:
        """The name of a constant tensor."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = self._fresh("c")
            self._constants[key] = name
            self._initializers.append(numpy_helper.from_array(value, name))
        return self._constants[key]

    def scalar(self, value: float, dtype: Any = np.float32) -> str:
        """The name of a 0-dim constant."""
        return self.constant(np.array(value, dtype=dtype))

    def model(
        self,
        image: tuple[int, ...],
        logits: tuple[str, tuple[int, ...]],
        *,
        exposed: Mapping[str, tuple[int, ...]] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> onnx.ModelProto:
        """The finished, checked model.

        Args:
            image: (C, H, W) of the input, which is called "image".
            logits: name of the value that becomes the output "logits", and its shape without the
                batch axis.
            exposed: names of further uint8 outputs -> their shapes, without the batch axis.
            metadata: key -> text.
        """
        self.add("Identity", [logits[0]], name="logits")
        floats, small = TensorProto.FLOAT, TensorProto.UINT8
        graph = helper.make_graph(
            self._nodes,
            "qat",
            [helper.make_tensor_value_info("image", floats, ["batch", *image])],
            [
                helper.make_tensor_value_info("logits", floats, ["batch", *logits[1]]),
                *(
                    helper.make_tensor_value_info(name, small, ["batch", *shape])
                    for name, shape in (exposed or {}).items()
                ),
            ],
            self._initializers,
        )
        domains = sorted({node.domain for node in self._nodes} - {""})
        opset = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(
            graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="qat"
        )
        helper.set_model_props(model, dict(metadata or {}))
        onnx.checker.check_model(model, full_check=True)
        return model

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{self._prefix}{stem}{self._count}"
