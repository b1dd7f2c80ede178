"""ONNX model of any network: the graph that PyTorch exports, its levels and its bits as they are.

`torch.onnx.export` writes the graph, whatever functions it consists of; quantizers of activations
are marks in it, and weights on a grid are inputs. `qat.export.onnx.surgery` puts operators in their
place.

For networks of convolutions, linear layers, ReLUs and norms `qat.export.onnx.model` has forms that
compute in integers.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from qat.errors import SpecError, one_line
from qat.export.onnx.allowed import OPSET
from qat.export.onnx.surgery import MARKS, Surgery
from qat.export.onnx.translatable import Translatable
from qat.export.packed.convert import Converted, put
from qat.export.packed.weight_codes import WeightCodes
from qat.nn.activation_codes import CodeRule, code_rule
from qat.quantize.activations import activation_quantizers
from qat.quantize.made_weights import made_quantizer
from qat.quantize.reach import Reach, known_reach
from qat.quantize.weights import current_weight


class _Mark(nn.Module):
    """Stands for a quantizer while the network is exported."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.onnx.ops.symbolic(
            f"{MARKS}::Quantize",
            [x],
            {"number": self._number, "rank": x.ndim},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
        return out


def general_model(
    model: nn.Module,
    converted: Converted,
    example: Tensor,
    *,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The ONNX model of a network of any functions that PyTorch exports.

    Args:
        model: prepared network; it is left as it is.
        converted: its codes.
        example: images (N, C, H, W), N >= 2, of any content.
        metadata: key -> text, kept in the file.

    Raises:
        SpecError: PyTorch cannot export the network.
    """
    net = copy.deepcopy(model).eval()
    put(net, converted)
    rules, coded = _marked(net), _coded(net, converted)
    graph = _exported(net, example, coded)
    return Surgery(graph, rules, coded).model(tuple(example.shape[1:]), metadata or {})


def _marked(net: nn.Module) -> list[tuple[str, CodeRule]]:
    """Put a mark in the place of each quantizer; names and rules, by the marks' numbers."""
    rules: list[tuple[str, CodeRule]] = []
    for name, quantizer in activation_quantizers(net).items():
        parent, _, child = name.rpartition(".")
        net.get_submodule(parent)._modules[child] = _Mark(len(rules))
        rules.append((name, code_rule(quantizer, name)))
    return rules


def _exported(net: nn.Module, example: Tensor, coded: Mapping[str, WeightCodes]) -> onnx.GraphProto:
    """The graph of a marked network; weights on grids are inputs, which nothing folds away."""
    batch = torch.export.Dim("batch")
    try:
        with _without_remarks(), torch.no_grad(), Translatable():
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=["image"],
                output_names=["logits"],
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
            assert program is not None  # as no file was named
            graph = program.model.graph
            for name in [name for name in graph.initializers if name in coded]:
                weight = graph.initializers.pop(name)
                weight.const_value = None
                graph.inputs.append(weight)
            program.optimize()
    except Exception as error:
        raise SpecError(
            f"PyTorch cannot export this network: {_cause(error)}; ship the packed file"
        ) from None
    return program.model_proto.graph


@contextmanager
def _without_remarks() -> Iterator[None]:
    """What the exporter warns of and logs is no user's to mend."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """The first sentence of what went wrong first; PyTorch says many lines around it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {one_line(error)}"[:200]


def _coded(net: nn.Module, converted: Converted) -> dict[str, WeightCodes]:
    """Full name of each weight on a grid, under all of its names -> its codes."""
    tensors: dict[str, Tensor] = dict(net.named_buffers(remove_duplicate=False))
    tensors |= dict(net.named_parameters(remove_duplicate=False))
    found: dict[int, WeightCodes] = {}
    reach = known_reach(net) or Reach()
    for name, codes in converted.weights.items():
        if name in reach.made:
            found[id(made_quantizer(net, name).get_buffer("weight"))] = codes
        else:
            found[id(current_weight(net, name))] = codes
    return {name: found[id(t)] for name, t in tensors.items() if id(t) in found}
