"""Latency of exported networks: every ONNX form that they have, beside the float network.

    python scripts/latency.py                            ResNet-18, W1A4, at 32, 64 and 224 pixels
    python scripts/latency.py size=[224] batch=[1] stem=standard rounds=60 operators=true
    python scripts/latency.py model=mobilenetv3_small_100 size=[224] quant=bcgd_w4a4

    quant=bcgd_w1a4      any option of conf/quant
    model=resnet18       resnet18, resnet34 or resnet50 of torchvision, or a name of timm
    stem=auto            of these three: small, standard, or auto: small up to 64 pixels
    size=[32,64,224]     pixels a side
    batch=[1,32]         images per pass
    rounds=20            timed passes of each network; they take turns
    threads=2            of onnxruntime
    operators=false      print what onnxruntime runs
    record=FILE          also write the table as YAML, as those in results/benchmarks/

float is the float network in the faithful form, in the general one where it has no other. Weights
are random, batch norms have seen one batch of noise: time does not depend on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from measured import record

from qat.commands.options import read_arguments, run_command
from qat.spec.extras import require_onnx
from qat.spec.schema import check, option


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySpec:
    """Options of the command; see the module's text."""

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


def main(arguments: Sequence[str]) -> None:
    """Print a table of latencies."""
    spec = read_arguments(LatencySpec, arguments, example="size=[224]")
    require_onnx()
    import torch

    from qat.commands.answers import latencies
    from qat.export.onnx.run import imported_onnxruntime

    onnxruntime = imported_onnxruntime()
    torch.set_num_threads(spec.threads)
    rows: list[list[str]] = []
    print(
        f"onnxruntime {onnxruntime.__version__}, {spec.threads} threads; {spec.model}, {spec.quant}"
    )
    print("fastest pass in ms (ratio of the fastest passes to float's, ratio of the medians)")
    for size in spec.size:
        models = _models(spec, size)
        if spec.operators:
            _print_operators(models)
        rows = rows or [["pixels, batch", *models]]
        networks = {name: _runner(data, spec.threads) for name, data in models.items()}
        for batch in spec.batch:
            found = latencies(networks, (3, size, size), batch=batch, rounds=spec.rounds)
            base = found["float"]
            cells = [
                f"{name} {1e3 * t.fastest:8.2f} ({t.fastest / base.fastest:.3f}, "
                f"{t.median / base.median:.3f})"
                for name, t in found.items()
            ]
            print(f"{size:4} pixels, batch {batch:3}:  {'   '.join(cells)}", flush=True)
            rows.append(
                [f"{size}, {batch}", *(_cell(t.fastest, base.fastest) for t in found.values())]
            )
    if spec.record is not None:
        where = f"{spec.threads} threads, onnxruntime {onnxruntime.__version__}"
        command = " ".join(["python scripts/latency.py", *arguments])
        record(spec.record, command, [rows], where)


def _cell(seconds: float, base: float) -> str:
    """Milliseconds of the fastest pass, and its ratio to float's."""
    ratio = "" if seconds == base else f" ({seconds / base:.2f})"
    return f"{1e3 * seconds:.3g}{ratio}"


def _models(spec: LatencySpec, size: int) -> dict[str, bytes]:
    """Form -> ONNX model, of the float network and of the quantized one."""
    from qat.errors import SpecError
    from qat.export.integer.graph import check_exact_form
    from qat.export.integer.trace import network_graph
    from qat.export.onnx.fast_steps import fast_steps
    from qat.export.onnx.general import general_model
    from qat.export.onnx.model import onnx_model

    float_net, net = _network(spec, "float", size), _network(spec, spec.quant, size)
    found = {"general": general_model(*net)}
    try:
        graph = network_graph(*net)
        check_exact_form(graph)
    except SpecError as error:
        print(f"no faithful or fast form: {error}")
        found["float"] = general_model(*float_net)
    else:
        found["float"] = onnx_model(network_graph(*float_net))
        found["faithful"] = onnx_model(graph)
        found["fast"] = onnx_model(graph, steps=fast_steps(graph, [net[2]]))
    order = ("float", "faithful", "fast", "general")
    return {name: found[name].SerializeToString() for name in order if name in found}


def _network(spec: LatencySpec, quant: str, size: int) -> tuple[Any, Any, Any]:
    """A prepared network, its codes, and the images that it has seen."""
    import torch

    from qat import QuantSpec, convert, prepare
    from qat.compose import conf_folder, group_option
    from qat.models.resnet import torchvision_resnet
    from qat.models.timm_model import timm_model

    torch.manual_seed(0)
    options = QuantSpec.from_dict(group_option(conf_folder(), "quant", quant))
    task = {"num_classes": 1000, "in_channels": 3, "image_size": size}
    if spec.model in ("resnet18", "resnet34", "resnet50"):
        net = torchvision_resnet(spec.model, stem=spec.stem, **task)
    else:
        net = timm_model(spec.model, **task)
    example = torch.randn(4, 3, size, size)
    prepare(net, options, example=example)
    with torch.no_grad():
        net.train()(example)
    return net.eval(), convert(net, options), example


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
