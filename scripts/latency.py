"""Latency of exported networks: every ONNX form that they have, beside the float network.

    python scripts/latency.py                            ResNet-18, W1A4, at 32, 64 and 224 pixels
    python scripts/latency.py size=[224] batch=[1] stem=standard rounds=60 operators=true
    python scripts/latency.py model=mobilenetv3_small_100 size=[224] quant=bcgd_w4a4
    python scripts/latency.py run=runs/DATE/TIME         the files in RUN/export; also in its report

    run=FOLDER           a run that scripts/export.py format=onnx was called for; then there is no
                         quant=, model=, stem= and size=
    quant=bcgd_w1a4      any option of conf/quant
    model=resnet18       resnet18, resnet34 or resnet50 of torchvision, or a name of timm; several
                         with commas between them
    stem=auto            of torchvision's: small, standard, or auto: small up to 64 pixels
    size=[32,64,224]     pixels a side
    batch=[1,32]         images per pass
    rounds=20            timed passes of each network; they take turns
    threads=2            of onnxruntime
    operators=false      print what onnxruntime runs
    record=FILE          also write the table as YAML, as those in results/benchmarks/

float is the float network in the faithful form, in the general one where it has no other. Weights
are random, batch norms have seen one batch of noise: time does not depend on them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from measured import record

from qat.commands.options import read_arguments, run_command
from qat.errors import SpecError
from qat.spec.extras import require_onnx
from qat.spec.schema import check, option

if TYPE_CHECKING:
    from qat.commands.answers import Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySpec:
    """Options of the command; see the module's text."""

    run: str | None = None
    quant: str = "bcgd_w1a4"
    model: str = "resnet18"
    stem: Literal["auto", "small", "standard"] = "auto"
    size: tuple[int, ...] = option((32, 64, 224), low=8)
    batch: tuple[int, ...] = option((1, 32), low=1)
    rounds: int = option(20, low=1)
    threads: int = option(2, low=1)
    operators: bool = False
    record: str | None = None

    def __post_init__(self) -> None:
        check(self, "")
        own = [f for f in fields(self) if f.name in ("quant", "model", "stem", "size")]
        changed = [f.name for f in own if getattr(self, f.name) != f.default]
        if self.run is not None and changed:
            raise SpecError(f"{changed[0]}= is not for run=, whose files are what they are")


def main(arguments: Sequence[str]) -> None:
    """Print a table of latencies."""
    spec = read_arguments(LatencySpec, arguments, example="size=[224]")
    require_onnx()
    import torch

    from qat.commands.answers import latencies
    from qat.export.onnx.run import imported_onnxruntime

    where = f"{spec.threads} threads, onnxruntime {imported_onnxruntime().__version__}"
    torch.set_num_threads(spec.threads)
    print(f"{where}; {spec.run or spec.quant}")
    print("fastest pass in ms (ratio of the fastest passes to float's, ratio of the medians)")
    times: list[dict[str, str]] = []
    sizes: list[dict[str, str]] = []
    for name, models in _jobs(spec):
        if spec.operators:
            _print_operators(models)
        shape = _shape(models["float"])
        networks = {form: _runner(data, spec.threads) for form, data in models.items()}
        row = {"network, pixels": f"{name}, {shape[-1]}"}
        sizes.append(row | {form: f"{len(data):,}" for form, data in models.items()})
        measured = {}
        for batch in spec.batch:
            found = latencies(networks, shape, batch=batch, rounds=spec.rounds)
            measured[batch] = found
            times.append({"network, pixels, batch": f"{name}, {shape[-1]}, {batch}", **_row(found)})
            print(_line(f"{name}, {shape[-1]} pixels, batch {batch}", found), flush=True)
        if spec.run is not None:
            _note(spec, measured)
    if spec.record is not None:
        command = " ".join(["python scripts/latency.py", *arguments])
        record(spec.record, command, [_table(times), _table(sizes)], where)


def _jobs(spec: LatencySpec) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Name of each network and its models by form, float first."""
    if spec.run is not None:
        yield spec.run, _of_run(Path(spec.run))
        return
    for name in spec.model.split(","):
        for size in spec.size:
            yield name, _models(spec, name, size)


def _line(name: str, found: "Mapping[str, Latency]") -> str:
    base = found["float"]
    cells = [
        f"{form} {1e3 * t.fastest:8.2f} ({t.fastest / base.fastest:.3f}, "
        f"{t.median / base.median:.3f})"
        for form, t in found.items()
    ]
    return f"{name}:  {'   '.join(cells)}"


def _row(found: "Mapping[str, Latency]") -> dict[str, str]:
    """Milliseconds of the fastest pass by form, and its ratio to float's."""
    base = found["float"].fastest
    return {
        form: f"{1e3 * t.fastest:.3g}{f' ({t.fastest / base:.2f})' if form != 'float' else ''}"
        for form, t in found.items()
    }


def _table(rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """The head, and a row for each; a form that a network has not leaves its cell empty."""
    head = list(dict.fromkeys(name for row in rows for name in row))
    return [head, *([row.get(name, "") for name in head] for row in rows)]


def _note(spec: LatencySpec, measured: "Mapping[int, Mapping[str, Latency]]") -> None:
    """Write down what was measured of a run's files, and draw its page anew."""
    from qat.export.onnx.run import imported_onnxruntime
    from qat.report.page.run_page import write_run_report
    from qat.storage.exported import note_latency
    from qat.storage.provenance import machine

    folder = Path(spec.run or "")
    where = {
        "rounds": spec.rounds,
        "threads": spec.threads,
        "onnxruntime": imported_onnxruntime().__version__,
        "processor": machine()["processor"],
    }
    for name in list(next(iter(measured.values())))[1:]:  # the first one is float
        times = [
            {"batch": batch, "fastest": t[name].fastest, "float": t["float"].fastest, **where}
            for batch, t in measured.items()
        ]
        note_latency(folder / "export", name, times)
    print(f"{write_run_report(folder) or 'no report'}: Files")


def _of_run(folder: Path) -> dict[str, bytes]:
    """A run's ONNX files by name, and the float network of the same architecture."""
    import torch

    from qat import QuantSpec, convert, prepare
    from qat.compose import conf_folder, group_option
    from qat.export.onnx.run import read_onnx
    from qat.storage.exported import exported_files
    from qat.train.open_run import open_trained

    trained = open_trained(folder, key="run")
    names = [name for name in sorted(exported_files(folder / "export")) if name.endswith(".onnx")]
    if not names:
        raise SpecError(
            f"run={folder} has no ONNX files of its own in export/; make some with "
            f"scripts/export.py run={folder} format=onnx"
        )
    options = QuantSpec.from_dict(group_option(conf_folder(), "quant", "float"))
    example = torch.zeros(2, *trained.preprocessing.shape)
    net = trained.new_network().eval()
    prepare(net, options, example=example)
    found = {"float": _float_model(net, convert(net, options), example).SerializeToString()}
    for name in names:
        read_onnx(folder / "export" / name)  # refuses what is no file of ours
        found[name] = (folder / "export" / name).read_bytes()
    return found


def _float_model(*net: Any) -> Any:
    """The float network in the faithful form, in the general one where it has no other."""
    from qat.export.integer.trace import network_graph
    from qat.export.onnx.general import general_model
    from qat.export.onnx.model import onnx_model

    try:
        return onnx_model(network_graph(*net))
    except SpecError:
        return general_model(*net)


def _models(spec: LatencySpec, name: str, size: int) -> dict[str, bytes]:
    """Form -> ONNX model, of the float network and of the quantized one."""
    from qat.export.integer.graph import check_exact_form
    from qat.export.integer.trace import network_graph
    from qat.export.onnx.fast_steps import fast_steps
    from qat.export.onnx.general import general_model
    from qat.export.onnx.model import onnx_model

    float_net = _network(spec, name, "float", size)
    net = _network(spec, name, spec.quant, size)
    found = {"float": _float_model(*float_net), "general": general_model(*net)}
    try:
        graph = network_graph(*net)
        check_exact_form(graph)
    except SpecError as error:
        print(f"no faithful or fast form: {error}")
    else:
        found["faithful"] = onnx_model(graph)
        found["fast"] = onnx_model(graph, steps=fast_steps(graph, [net[2]]))
    order = ("float", "faithful", "fast", "general")
    return {name: found[name].SerializeToString() for name in order if name in found}


def _network(spec: LatencySpec, name: str, quant: str, size: int) -> tuple[Any, Any, Any]:
    """A prepared network, its codes, and the images that it has seen."""
    import torch

    from qat import QuantSpec, convert, prepare
    from qat.compose import conf_folder, group_option
    from qat.models.resnet import torchvision_resnet
    from qat.models.timm_model import timm_model

    torch.manual_seed(0)
    options = QuantSpec.from_dict(group_option(conf_folder(), "quant", quant))
    task = {"num_classes": 1000, "in_channels": 3, "image_size": size}
    if name in ("resnet18", "resnet34", "resnet50"):
        net = torchvision_resnet(name, stem=spec.stem, **task)
    else:
        net = timm_model(name, **task)
    example = torch.randn(4, 3, size, size)
    prepare(net, options, example=example)
    with torch.no_grad():
        net.train()(example)
    return net.eval(), convert(net, options), example


def _shape(model: bytes) -> tuple[int, ...]:
    """(C, H, W) of a model's images."""
    import onnx

    dims = onnx.load_model_from_string(model).graph.input[0].type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims[1:])


def _runner(data: bytes, threads: int) -> Any:
    from qat.export.onnx.run import session

    running = session(data, "the model", threads=threads)
    return lambda image: running.run(["logits"], {"image": image.numpy()})


def _print_operators(models: dict[str, bytes]) -> None:
    import tempfile

    from qat.export.onnx.run import optimised_operators

    for name, data in models.items():
        with tempfile.TemporaryDirectory() as folder:
            counts = optimised_operators(data, Path(folder))
        print(f"{name}: {', '.join(f'{n} {op}' for op, n in counts.most_common())}")


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
