"""A trained run as a file to ship: packed at its true bits, or ONNX for integer kernels.

    python scripts/export.py run=runs/DATE/TIME                  RUN/export/packed.safetensors
    python scripts/export.py run=runs/DATE/TIME format=onnx      RUN/export/faithful.onnx, fast.onnx
    python scripts/export.py run=runs/DATE/TIME format=qonnx     RUN/export/qonnx.onnx, for FPGAs

    run=                 run folder
    format=packed        packed, onnx or qonnx
    form=both            of ONNX: faithful (sums of two branches in float), fast (in int8) or both
    state=selected       epoch of the run: selected or last
    out=FOLDER           where the files go; left out, RUN/export
    trits=false          packed: ternary weights five to a byte instead of four
    calibration=256      fast form: training images that find the steps of its sums
    data.root=FOLDER     where the run's images are by now (and other options of data)
    threads=null         CPU threads

Packed and ONNX files are opened again and asked about all validation and test images.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qat.commands.options import read_arguments, run_command, split_data
from qat.errors import CheckpointError, SpecError
from qat.schema import check, option

if TYPE_CHECKING:
    from qat.export.convert import Converted
    from qat.export.header import Header
    from qat.lit.data.module import ImageData
    from qat.lit.judging import Answers
    from qat.trained import Trained

Parts = Mapping[str, "Answers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSpec:
    """Options of the command; see the module's text."""

    run: str = option(hint="give a run folder, runs/DATE/TIME")
    format: Literal["packed", "onnx", "qonnx"] = "packed"
    form: Literal["faithful", "fast", "both"] = "both"
    state: Literal["selected", "last"] = "selected"
    out: str | None = None
    trits: bool = False
    calibration: int = option(256, low=1)
    threads: int | None = option(None, low=1)

    def __post_init__(self) -> None:
        check(self, "")


def main(arguments: Sequence[str]) -> None:
    """Export the run that the arguments name."""
    data_arguments, own = split_data(arguments)
    spec = read_arguments(ExportSpec, own, example="run=runs/DATE/TIME")
    if spec.trits and spec.format != "packed":
        raise SpecError("trits=true is for format=packed; ONNX unpacks whole bits")
    import torch

    from qat.packed_run import packed_run
    from qat.trained import open_trained

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    folder = Path(spec.out or Path(spec.run) / "export")
    trained = open_trained(Path(spec.run), state=spec.state, key="run")
    trained = replace(trained, data=_data(trained, data_arguments))
    trained.data.prepare()
    converted, header = packed_run(trained, trits=spec.trits)
    expected = _asked(_no_grad(trained.net), trained.data)
    print(f"run {spec.run}, {spec.state} epoch: {_accuracies(expected)}")
    if spec.format == "packed":
        _packed(folder, trained, converted, header, expected)
    elif spec.format == "onnx":
        _onnx(folder, spec, trained, converted, header, expected)
    else:
        _qonnx(folder, trained, converted, header, expected)


def _data(trained: "Trained", arguments: list[str]) -> "ImageData":
    """The run's data, with what the command line says of them."""
    from qat.compose import composed_data, conf_folder
    from qat.lit.data.registry import build_data

    if not arguments:
        return trained.data
    name = f"data={trained.spec.data.name}"
    options = composed_data(conf_folder(), [name, *arguments])
    size = options.image_size or trained.spec.data.image_size
    return build_data(replace(options, image_size=size), seed=trained.spec.seed)


def _packed(
    folder: Path, trained: "Trained", converted: "Converted", header: "Header", expected: Parts
) -> None:
    import torch

    from qat.packed import load_packed, save_packed
    from qat.packed_run import with_accuracy

    header = with_accuracy(header, {name: part.accuracy for name, part in expected.items()})
    path = folder / "packed.safetensors"
    size = save_packed(path, converted, header)
    packed = load_packed(path, model=None if header.architecture else _float_model(trained))
    found = _asked(_no_grad(packed.net), trained.data)
    for name, part in found.items():
        if not torch.equal(part.logits, expected[name].logits):
            raise CheckpointError(f"{path}: its logits on {name} images are not the run's")
    print(f"{path}: {size:,} bytes; logits bit for bit the run's")
    parts = packed.file.bytes_by_kind
    print("  = " + " + ".join(f"{count:,} {kind}" for kind, count in parts.items()))
    promised = header.promised_bytes
    print(f"  the audit promised {promised:,}; the difference is header and counters")
    _print_ratio(size, trained)


def _qonnx(
    folder: Path, trained: "Trained", converted: "Converted", header: "Header", expected: Parts
) -> None:
    """No runtime of ours reads this form, so its accuracy is that of the run."""
    from qat.export.onnx_run import onnx_metadata
    from qat.export.qonnx_model import qonnx_model
    from qat.export.trace import network_graph
    from qat.lit.checkpoint_file import replacing
    from qat.packed_run import with_accuracy

    header = with_accuracy(header, {name: part.accuracy for name, part in expected.items()})
    graph = network_graph(trained.net, converted, _example(trained.data))
    model = qonnx_model(graph, metadata=onnx_metadata(header, "qonnx"))
    data, path = model.SerializeToString(), folder / "qonnx.onnx"
    with replacing(path) as file:
        file.write(data)
    print(f"{path}: {len(data):,} bytes; Quant and BipolarQuant nodes, weights as floats")


def _onnx(
    folder: Path,
    spec: ExportSpec,
    trained: "Trained",
    converted: "Converted",
    header: "Header",
    expected: Parts,
) -> None:
    from qat.export.onnx_model import summands
    from qat.export.trace import network_graph

    graph = network_graph(trained.net, converted, _example(trained.data))
    forms = ("faithful", "fast") if spec.form == "both" else (spec.form,)
    if "fast" in forms and not summands(graph):
        print("the network adds no two branches in front of a quantizer: fast is faithful")
        forms = ("faithful",)
    for form in forms:
        steps = _steps(graph, trained.data, spec.calibration) if form == "fast" else None
        _onnx_form(folder / f"{form}.onnx", form, graph, steps, trained, header, expected)


def _onnx_form(
    path: Path,
    form: str,
    graph: Any,
    steps: Mapping[str, float] | None,
    trained: "Trained",
    header: "Header",
    expected: Parts,
) -> None:
    """Measure the model, write it with its accuracy, and say how it differs from the run."""
    from qat.export.onnx_model import onnx_model
    from qat.export.onnx_run import OnnxNetwork, onnx_metadata
    from qat.lit.checkpoint_file import replacing
    from qat.packed_run import with_accuracy

    draft = onnx_model(graph, steps=steps, metadata=onnx_metadata(header, form))
    found = _asked(OnnxNetwork(draft.SerializeToString(), str(path)), trained.data)
    header = with_accuracy(header, {name: part.accuracy for name, part in found.items()})
    data = onnx_model(graph, steps=steps, metadata=onnx_metadata(header, form)).SerializeToString()
    with replacing(path) as file:
        file.write(data)
    print(f"{path}: {len(data):,} bytes; {_accuracies(found)}")
    for name, part in found.items():
        differ = int((part.classes != expected[name].classes).sum())
        print(f"  {differ} of {len(part.labels)} predictions on {name} differ from the run's")
    _print_moved_codes(graph, steps, trained.data)
    _print_operators(data)
    _print_ratio(len(data), trained)


def _print_moved_codes(graph: Any, steps: Mapping[str, float] | None, data: "ImageData") -> None:
    """Where integers and runtime disagree, by code; a few at ties, more behind sums in int8."""
    from qat.export.onnx_check import onnx_moved_codes

    batch = next(iter(data.val_dataloader()))[0]
    counts = onnx_moved_codes(graph, batch, steps=steps).values()
    moved, total = sum(count for count, _ in counts), sum(count for _, count in counts)
    print(
        f"  layer by layer, {moved:,} of {total:,} activation codes of {len(batch)} validation "
        "images are not those of the network in integers"
    )


def _print_operators(data: bytes) -> None:
    """What onnxruntime makes of the file on this machine."""
    import tempfile

    from qat.export.onnx_run import optimised_operators

    with tempfile.TemporaryDirectory() as folder:
        counts = optimised_operators(data, Path(folder))
    shown = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(f"  onnxruntime runs {shown}")


def _steps(graph: Any, data: "ImageData", images: int) -> Mapping[str, float]:
    """Steps of the fast form's sums, from training images that are not augmented."""
    import torch

    from qat.export.sums import sum_steps
    from qat.lit.data.dataset import PlainDataset

    dataset = PlainDataset(data.parts.train, data.evaluation_transform())
    count = min(images, len(dataset))
    # spread over the whole part, whose images may be sorted by class
    chosen = [dataset[i * len(dataset) // count][0] for i in range(count)]
    return sum_steps(graph, torch.split(torch.stack(chosen), 32))


def _asked(network: Any, data: "ImageData") -> Parts:
    """Answers about all validation and test images."""
    from qat.lit.judging import answers

    return {
        "validation": answers(network, data.val_dataloader()),
        "test": answers(network, data.test_dataloader()),
    }


def _accuracies(parts: Parts) -> str:
    return ", ".join(f"{name} {part.accuracy:.4f}" for name, part in parts.items())


def _print_ratio(size: int, trained: "Trained") -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(trained.net.state_dict(), buffer)
    whole = len(buffer.getvalue())
    print(
        f"  1/{whole / size:.2f} of the float state dict ({whole:,} bytes as torch.save writes it)"
    )


def _no_grad(network: Any) -> Any:
    from qat.deployed import without_grad

    return without_grad(network)


def _float_model(trained: "Trained") -> Any:
    from qat.compose import instantiated

    data = trained.data
    shape = {"num_classes": len(trained.classes), "in_channels": data.channels}
    return instantiated(trained.spec.model, **shape, image_size=data.image_size)


def _example(data: "ImageData") -> Any:
    import torch

    return torch.zeros(2, data.channels, data.image_size, data.image_size)


def command() -> None:
    """Entry point of scripts/export.py and of the console script qat-export."""
    run_command(main, __doc__ or "")
