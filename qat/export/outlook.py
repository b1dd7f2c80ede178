"""Outlook of an untrained network: in which formats it can be exported, and what stands in the way.

The refusals are those of the export itself, on a copy whose weights are nothing.
"""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat.errors import SpecError, one_line
from qat.export.integer.graph import Layer, check_exact_form, code_rules
from qat.export.integer.refusals import check_even_levels
from qat.export.integer.trace import network_graph
from qat.export.packed.convert import Converted, convert
from qat.quantize.plan import Plan, weight_projections
from qat.spec.extras import require_onnxscript

FORMATS = ("packed", "onnx", "qonnx")  # of scripts/export.py, each asks for more
_GENERAL = "onnx in the general form, if PyTorch can export it"


@dataclass(frozen=True, slots=True)
class Outlook:
    """Why a network cannot have a form; "" where it can.

    Attributes:
        packed: the packed file.
        exact: faithful.onnx and fast.onnx.
        qonnx: qonnx.onnx.
        integers: `qat.IntegerNetwork`, engine=integer.
        general: general.onnx; None where that was not tried.
        unknown: why the network could not even be asked; then the others are empty.
    """

    packed: str = ""
    exact: str = ""
    qonnx: str = ""
    integers: str = ""
    general: str | None = None
    unknown: str = ""

    def __str__(self) -> str:
        """One line, such as "packed, onnx yes; qonnx no: levels of fc are not evenly spaced"."""
        if self.unknown:
            return f"not known: {self.unknown}"
        able = [self.packed, self.exact, self.qonnx].count("")
        parts = [f"{', '.join(FORMATS[:able])} yes"] if able else []
        if able == 1:
            parts.append(_GENERAL)
        lost = FORMATS[max(2, able) if able else 0 :]
        parts += [f"{', '.join(lost)} no: {_short(self.qonnx)}"] if lost else []
        return "; ".join(parts)

    def lines(self) -> list[str]:
        """A line for each form, with the reason where there is one and what to do."""
        if self.unknown:
            return [str(self)]
        answers = {
            "packed": _answer(self.packed, "packed.safetensors"),
            "onnx": _answer(self.exact, "faithful.onnx, fast.onnx"),
            "qonnx": _answer(self.qonnx, "qonnx.onnx"),
            "integers": _answer(self.integers, "qat.IntegerNetwork, engine=integer"),
        }
        if self.exact and not self.packed:
            general = "not tried" if self.general is None else _answer(self.general, "general.onnx")
            exact = _short(self.exact)
            answers["onnx"] = f"{general}; no faithful.onnx or fast.onnx: {exact}"
        return [f"{name:8}  {answer}" for name, answer in answers.items()]


def export_outlook(
    model: nn.Module, plan: Plan, example: Tensor, *, is_tried: bool = False
) -> Outlook:
    """What `scripts/export.py` will say of this network once it is trained.

    Args:
        model: prepared network; it is left as it is.
        plan: of its layers.
        example: images (N, C, H, W), N >= 2.
        is_tried: whether a network without an exact form is exported in the general one, to see
            whether PyTorch can; it takes as long as a short run.
    """
    try:
        # whatever the model's own code says or draws while it is followed, the run is not told
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return _outlook(copy.deepcopy(model), plan, example, is_tried=is_tried)
    except Exception as error:  # a run that trains is not stopped for what comes after it
        return Outlook(unknown=one_line(error) or type(error).__name__)


def _outlook(model: nn.Module, plan: Plan, example: Tensor, *, is_tried: bool) -> Outlook:
    with torch.no_grad():
        for weight in weight_projections(model, plan):
            weight.zero_()  # of these the codes are found at once
    try:
        converted = convert(model, plan)
    except SpecError as error:
        reason = one_line(error)
        return Outlook(packed=reason, exact=reason, qonnx=reason, integers=reason)
    found = {"exact": "", "qonnx": "", "integers": ""}
    waiting = ["integers", "exact", "qonnx"]  # what refuses one refuses the next ones
    try:
        graph = network_graph(model, converted, example, is_ours=not is_tried)
        code_rules(graph)
        waiting.remove("integers")
        check_exact_form(graph)
        waiting.remove("exact")
        for node in graph:
            if isinstance(node, Layer) and node.codes is not None:
                check_even_levels(node.path, node.codes.quantizer.levels)
    except SpecError as error:
        found |= dict.fromkeys(waiting, one_line(error))
    general = None
    if found["exact"] and is_tried:
        general = _tried(model, converted, example)
    return Outlook(**found, general=general)


def _tried(model: nn.Module, converted: Converted, example: Tensor) -> str:
    """Why there is no general form, "" if there is one."""
    try:
        require_onnxscript()
        from qat.export.onnx.general import general_model  # onnx, of an extra

        general_model(model, converted, example)
    except SpecError as error:
        return one_line(error)
    return ""


def _answer(reason: str, what: str) -> str:
    return f"no: {reason}" if reason else what


def _short(reason: str) -> str:
    return reason.partition(";")[0]
