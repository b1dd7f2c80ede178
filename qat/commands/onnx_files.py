"""ONNX and QONNX files of a run's network, with what they differ in."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from onnx import ModelProto
from onnx.helper import set_model_props

from qat.commands.export_job import ExportJob, accuracies
from qat.data.dataset import PlainDataset
from qat.data.module import ImageData
from qat.errors import SpecError, one_line, shown
from qat.export.integer.graph import Graph, check_exact_form
from qat.export.integer.trace import network_graph
from qat.export.onnx.fast_steps import fast_steps
from qat.export.onnx.general import general_model
from qat.export.onnx.model import integer_stem, onnx_model, summands
from qat.export.onnx.moved_codes import onnx_moved_codes
from qat.export.onnx.qonnx import qonnx_model
from qat.export.onnx.run import OnnxNetwork, onnx_metadata, optimised_operators
from qat.spec.extras import require_onnxscript
from qat.storage.atomic import replacing

_AT_ONCE = 32  # images of the calibration
_CURES = {
    "fast": "ship faithful.onnx, or give calibration= more images",
    "faithful": "ship the packed file",
    "general": "ship the packed file, or give activations more bits",
}
_MANY = 0.02  # share of the predictions; of trained networks some tenths of a percent differ


class OnnxOptions(Protocol):
    """Options of the command that are for ONNX.

    Attributes:
        form: faithful, fast, both or general.
        calibration: training images that find the steps of the fast form's sums.
    """

    @property
    def form(self) -> str: ...  # noqa: D102
    @property
    def calibration(self) -> int: ...  # noqa: D102


def write_onnx(job: ExportJob, options: OnnxOptions) -> None:
    """Write FORM.onnx for each form, and print how it differs from the run.

    A network that has no faithful and no fast form gets the general one, if both were wanted.

    Args:
        job: the network.
        options: of the command.

    Raises:
        SpecError: the network has no such form.
    """
    if options.form == "general":
        return _write_general(job)
    forms = ("faithful", "fast") if options.form == "both" else (options.form,)
    try:
        graph = network_graph(job.trained.net, job.converted, job.example)
        check_exact_form(graph)
    except SpecError as error:
        if options.form != "both":
            raise
        print(f"no faithful or fast form: {one_line(error).partition(';')[0]}")
        return _write_general(job)
    if "fast" in forms and not summands(graph) and integer_stem(graph) is None:
        print("the network has no sums in front of quantizers, nor an integer first layer")
    for form in forms:
        steps = _steps(graph, job.trained.data, options.calibration) if form == "fast" else None
        metadata = onnx_metadata(job.header, form)
        _write_form(job, form, onnx_model(graph, steps=steps, metadata=metadata))
        _print_moved_codes(graph, steps, job.trained.data)


def write_qonnx(job: ExportJob, options: object = None) -> None:
    """Write qonnx.onnx; no runtime of ours reads it, so its accuracy is that of the run.

    Args:
        job: the network.
        options: of the command; none is for this format.
    """
    graph = network_graph(job.trained.net, job.converted, job.example)
    header = job.header_with(job.expected)
    data = qonnx_model(graph, metadata=onnx_metadata(header, "qonnx")).SerializeToString()
    path = _written(job.folder / "qonnx.onnx", data)
    print(f"{shown(path)}: {len(data):,} bytes; Quant and BipolarQuant nodes, weights as floats")


def _write_general(job: ExportJob) -> None:
    require_onnxscript()
    metadata = onnx_metadata(job.header, "general")
    model = general_model(job.trained.net, job.converted, job.example, metadata=metadata)
    _write_form(job, "general", model)


def _write_form(job: ExportJob, form: str, model: ModelProto) -> None:
    found = job.asked(OnnxNetwork(model.SerializeToString(), form))
    # the accuracy is known only now, and the rest is the same
    set_model_props(model, onnx_metadata(job.header_with(found), form))
    data = model.SerializeToString()
    path = _written(job.folder / f"{form}.onnx", data)
    print(f"{shown(path)}: {len(data):,} bytes; {accuracies(found)}")
    for name, part in found.items():
        differ = job.differ(name, found)
        print(f"  {differ} of {len(part.labels)} predictions on {name} differ from the run's")
        if differ > _MANY * len(part.labels):
            print(
                f"  warning: on {name} {form}.onnx answers otherwise than the run for "
                f"{100 * differ / len(part.labels):.1f} % of the images; {_CURES[form]}"
            )
    with tempfile.TemporaryDirectory() as folder:
        counts = optimised_operators(data, Path(folder))
    told = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(f"  onnxruntime runs {told}")
    job.note(path, form, found)


def _print_moved_codes(graph: Graph, steps: Mapping[str, float] | None, data: ImageData) -> None:
    """Where integers and runtime disagree, by code; a few at ties, more behind sums in int8."""
    batch = next(iter(data.val_dataloader()))[0]
    counts = onnx_moved_codes(graph, batch, steps=steps).values()
    moved, total = sum(count for count, _ in counts), sum(count for _, count in counts)
    print(
        f"  layer by layer, {moved:,} of {total:,} activation codes of {len(batch)} validation "
        "images are not those of the network in integers"
    )


def _steps(graph: Graph, data: ImageData, images: int) -> Mapping[str, float]:
    """Steps of the fast form's sums, from training images that are not augmented."""
    dataset = PlainDataset(data.parts.train, data.evaluation_transform())
    count = min(images, len(dataset))
    # spread over the whole part, whose images may be sorted by class
    chosen = [dataset[i * len(dataset) // count][0] for i in range(count)]
    return fast_steps(graph, torch.split(torch.stack(chosen), _AT_ONCE))


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)
    return path
