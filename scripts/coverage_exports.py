"""What can be exported of one network, and whether the files answer as it does; see coverage.py."""

from collections import Counter
from dataclasses import dataclass

import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from qat import QuantSpec, convert
from qat.errors import QatError, one_line
from qat.export.integer.graph import check_exact_form, code_rules
from qat.export.integer.network import IntegerNetwork
from qat.export.integer.numbers import over_channels
from qat.export.integer.trace import network_graph
from qat.export.onnx.general import general_model
from qat.export.onnx.run import OnnxNetwork, onnx_metadata, session
from qat.export.packed.convert import Converted
from qat.nn.activation_codes import code_rule
from qat.quantize.activations import activation_quantizers
from qat.spec.header import Header

ON_A_JUMP = 1e-3  # of a step; sums of some thousand numbers of either sign differ by less


@dataclass(kw_only=True)
class Exports:
    """What became of the exports of one network.

    Attributes:
        general: why there is no general ONNX form that is written and read, "" if there is one.
        general_bytes: size of its file.
        general_differ: predictions of it that are not the network's.
        general_distance: largest difference of its logits, of the largest logit.
        exact: what the faithful ONNX form refuses, "" if nothing; it is not written here.
        integer: why there is no integer network, "" if there is one.
        integer_differ: predictions of it that are not the network's.
        first_moved: where predictions differ, the first quantizer that gives another code, and how
            far from a jump of its staircase these values lie.
        moved_distance: that distance in steps.
        images: number of images that the general form and the network were asked for; the integer
            network is asked for the first `example`.
    """

    general: str = "not reached"
    general_bytes: int = 0
    general_differ: int = 0
    general_distance: float = 0.0
    exact: str = "not reached"
    integer: str = "not reached"
    integer_differ: int = 0
    first_moved: str = ""
    moved_distance: float = 0.0
    images: int = 0

    @property
    def is_unexplained(self) -> bool:
        """Whether predictions differ, and not because of values that lie on a jump."""
        return self.general_differ > 0 and not (
            self.first_moved and self.moved_distance < ON_A_JUMP
        )


@torch.no_grad()
def exports(net: nn.Module, spec: QuantSpec, images: Tensor, *, example: int) -> Exports:
    """Export a network in evaluation mode whose weights lie on their grids, and ask the results.

    Args:
        net: prepared, with hard weights; left as it is.
        spec: of its quantization.
        images: (N, C, H, W).
        example: the number of images that the exporters are given.
    """
    found, converted, answers = Exports(images=len(images)), convert(net, spec), net(images)
    _integer(found, net, converted, images[:example], answers[:example])
    _general(found, net, converted, Header(quant=spec), images, answers, example)
    return found


def _integer(
    found: Exports, net: nn.Module, converted: Converted, images: Tensor, answers: Tensor
) -> None:
    try:
        graph = network_graph(net, converted, images)
        code_rules(graph)
        found.integer = ""
        check_exact_form(graph)
        found.exact = ""
    except QatError as error:
        found.exact = _reason(error)
        if found.integer:
            found.integer = found.exact
            return
    try:
        found.integer_differ = _differ(IntegerNetwork(graph)(images), answers)
    except QatError as error:  # sums that do not fit into 32 bits, say
        found.integer = _reason(error)


def _general(
    found: Exports,
    net: nn.Module,
    converted: Converted,
    header: Header,
    images: Tensor,
    answers: Tensor,
    example: int,
) -> None:
    try:
        metadata = onnx_metadata(header, "general")
        model = general_model(net, converted, images[:example], metadata=metadata)
        data = model.SerializeToString()
        theirs = OnnxNetwork(data, "general", threads=1)(images)
    except Exception as error:  # whatever it is, the rest of the row stands
        found.general = _reason(error)
        return
    found.general, found.general_bytes = "", len(data)
    found.general_differ = _differ(theirs, answers)
    if found.general_differ:
        _first_moved(found, net, model, images)
    found.general_distance = float((theirs - answers).abs().max() / answers.abs().max())


def _first_moved(found: Exports, net: nn.Module, model: ModelProto, images: Tensor) -> None:
    """Follow both side by side to the first quantizer, of those called once, with another code."""
    passed: list[tuple[str, Tensor, Tensor]] = []
    quantizers = activation_quantizers(net)
    hooks = [
        quantizer.register_forward_hook(
            lambda _, x, y, name=name: passed.append((name, x[0].clone(), y.clone()))
        )
        for name, quantizer in quantizers.items()
    ]
    net(images)
    for hook in hooks:
        hook.remove()
    calls = Counter(name for name, _, _ in passed)
    names = [f"quantized({name})" for name in quantizers if calls[name] == 1]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    running = session(model.SerializeToString(), "general", threads=1)
    values = dict(zip(names, running.run(names, {"image": images.numpy()}), strict=True))
    for name, x, y in passed:
        theirs = values.get(f"quantized({name})")
        rule = code_rule(quantizers[name], name)
        if theirs is None:
            continue
        moved = (torch.from_numpy(theirs) / rule.step).round() != (y / rule.step).round()
        if not bool(moved.any()):
            continue
        z = x.double() / rule.step - over_channels(rule.shift, x)
        found.moved_distance = float((z if rule.is_sign else z - z.round()).abs()[moved].max())
        found.first_moved = (
            f"{int(moved.sum()):,} of {moved.numel():,} codes of {name}, "
            f"{found.moved_distance:.0e} of a step from a jump"
        )
        return


def _differ(theirs: Tensor, ours: Tensor) -> int:
    return int((theirs.argmax(1) != ours.argmax(1)).sum())


def _reason(error: Exception) -> str:
    return one_line(error).partition(";")[0]
