"""Outlook of an untrained network: in which formats it can be exported, and what stands in the way.

The refusals are those of the export itself, on a copy whose weights are nothing.
"""

import copy
import warnings

import torch
from torch import Tensor, nn

from qat.errors import SpecError, one_line
from qat.export.integer.graph import Layer, check_exact_form, code_rules
from qat.export.integer.refusals import check_even_levels
from qat.export.integer.trace import network_graph
from qat.export.packed.convert import convert
from qat.quantize.plan import Plan, weight_projections

FORMATS = ("packed", "onnx", "qonnx")  # of scripts/export.py, each asks for more
_GENERAL = "onnx in the general form, if PyTorch can export it"


def export_outlook(model: nn.Module, plan: Plan, example: Tensor) -> str:
    """What `scripts/export.py` will say of this network once it is trained, in one line.

    Args:
        model: prepared network; it is left as it is.
        plan: of its layers.
        example: images (N, C, H, W), N >= 2.

    Returns:
        Such as "packed yes; onnx in the general form, if PyTorch can export it; qonnx no: the layer
        act (GELU) cannot be exported", or "not known: ..." where the network cannot even be asked.
        Whether PyTorch can is not tried: it takes as long as a short run.
    """
    try:
        # whatever the model's own code says or draws while it is followed, the run is not told
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            able, reason = _able(copy.deepcopy(model), plan, example)
    except Exception as error:  # a run that trains is not stopped for what comes after it
        return f"not known: {one_line(error) or type(error).__name__}"
    parts = [f"{', '.join(FORMATS[:able])} yes"] if able else []
    if able == 1:
        parts.append(_GENERAL)
    lost = FORMATS[max(2, able) if able else 0 :]
    parts += [f"{', '.join(lost)} no: {reason}"] if reason else []
    return "; ".join(parts)


def _able(model: nn.Module, plan: Plan, example: Tensor) -> tuple[int, str]:
    """How many of FORMATS the network can have, and why not the others."""
    with torch.no_grad():
        for weight in weight_projections(model, plan):
            weight.zero_()  # of these the codes are found at once
    able = 0
    try:
        converted = convert(model, plan)
        able = 1
        graph = network_graph(model, converted, example)
        code_rules(graph)
        check_exact_form(graph)
        able = 2
        for node in graph:
            if isinstance(node, Layer) and node.codes is not None:
                check_even_levels(node.path, node.codes.quantizer.levels)
    except SpecError as error:
        return able, one_line(error).partition(";")[0]
    return len(FORMATS), ""
