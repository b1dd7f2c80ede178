"""What can be exported of one network, and whether the files answer as it does; see coverage.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat import QuantSpec, convert
from qat.errors import QatError, one_line
from qat.export.integer.graph import check_exact_form, code_rules
from qat.export.integer.network import IntegerNetwork
from qat.export.integer.trace import network_graph
from qat.export.onnx.general import general_model
from qat.export.onnx.run import OnnxNetwork, onnx_metadata
from qat.export.packed.convert import Converted
from qat.spec.header import Header


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
        own_differ: predictions of the network itself that change with the last bit of the image.
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
    own_differ: int = 0
    images: int = 0

    @property
    def is_unexplained(self) -> bool:
        """Whether the general form predicts otherwise, and the network itself is sure."""
        return self.general_differ > 0 and self.own_differ == 0


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
    found.own_differ = _own(net, images, answers)
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
    found.general_distance = float((theirs - answers).abs().max() / answers.abs().max())


def _own(net: nn.Module, images: Tensor, answers: Tensor) -> int:
    """Images that a last bit, up or down, gives another prediction."""
    sides = [
        net(images.nextafter(torch.tensor(side))).argmax(1) != answers.argmax(1)
        for side in (torch.inf, -torch.inf)
    ]
    return int((sides[0] | sides[1]).sum())


def _differ(theirs: Tensor, ours: Tensor) -> int:
    return int((theirs.argmax(1) != ours.argmax(1)).sum())


def _reason(error: Exception) -> str:
    return one_line(error).partition(";")[0]
