"""Accuracy and latency of a trained network, in whichever form it is.

python scripts/evaluate.py model=runs/DATE/TIME                    a run folder
python scripts/evaluate.py model=FILE.safetensors                  a packed file
python scripts/evaluate.py model=FILE.onnx data.root=FOLDER        an ONNX file

model=A,B                 several, timed in turns; predictions compared with the first one's
data=NAME data.root=...   any data group; left out, the one that it was trained on
part=test                 test or validation
state=selected            epoch of a run folder: selected or last
engine=float              of run folders and packed files: float, or integer (the reference)
integer_forward=auto      with engine=float: int8 sums in layers of codes, on, off or auto: a run
                          folder as it was trained, a file where the CPU is made for it
latency=[1,32]            batch sizes to time; [] for none
rounds=20 threads=null    timed passes; CPU threads
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qat.commands.options import check_path, read_arguments, run_command, split_data
from qat.errors import SpecError, shown
from qat.names import IntegerForward
from qat.spec.schema import check, option
from qat.storage.data_record import read_record

if TYPE_CHECKING:
    from qat.commands.network import Network
    from qat.data.module import ImageData


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSpec:
    """Options of the command; see the module's text."""

    model: str = option(hint="give a run folder, a packed file or an ONNX file")
    part: Literal["test", "validation"] = "test"
    state: Literal["selected", "last"] = "selected"
    engine: Literal["float", "integer"] = "float"
    integer_forward: IntegerForward = "auto"
    latency: tuple[int, ...] = option((1, 32), low=1, high=4096, hint="give a list, [1,32]")
    rounds: int = option(20, low=1)
    threads: int | None = option(None, low=1)

    def __post_init__(self) -> None:
        check(self, "")


def main(arguments: Sequence[str]) -> None:
    """Evaluate what the arguments name."""
    data_arguments, own = split_data(arguments)
    spec = read_arguments(EvaluateSpec, own, example="model=runs/DATE/TIME")
    names = spec.model.split(",")
    for name in names:
        check_path(Path(name))
    import torch

    from qat.commands.network import open_network

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    networks = {
        name: open_network(
            Path(name),
            state=spec.state,
            engine=spec.engine,
            threads=spec.threads,
            integer_forward=spec.integer_forward,
        )
        for name in names
    }
    data = _data(networks, data_arguments)
    _print_accuracies(networks, data, spec.part)
    _print_latencies(networks, spec)


def _data(networks: "dict[str, Network]", arguments: list[str]) -> "ImageData":
    """The data that the arguments name, else those of the first network, with the run's parts."""
    from qat.commands.answers import check_fits, tell_changes
    from qat.compose import composed_data, conf_folder
    from qat.data.registry import build_data

    name, first = next(iter(networks.items()))
    if first.data is None and not arguments:
        raise SpecError(f"{','.join(networks)} does not tell its data; give data=NAME")
    before = None if arguments else read_record(Path(name))
    data = build_data(composed_data(conf_folder(), arguments, first.data), before=before)
    data.prepare()
    for network in networks.values():
        check_fits(network.preprocessing, data)
    for folder in filter(os.path.isdir, networks):
        tell_changes(Path(folder), data)
    return data


def _print_accuracies(networks: "dict[str, Network]", data: "ImageData", part: str) -> None:
    from qat.commands.answers import answers

    first = None
    for name, network in networks.items():
        batches = data.test_dataloader() if part == "test" else data.val_dataloader()
        found = answers(network.logits, batches)
        first = first or found
        size = f", {network.size:,} bytes" if network.size else ""
        print(f"{shown(name)} ({network.kind}{size})")
        count = len(found.labels)
        print(f"  {part:10} {found.accuracy:.4f}  {count} images of {data.options.name}")
        recorded = network.header.accuracy.get(part)
        if recorded is not None:
            print(f"  at export  {recorded:.4f}")
        if found is not first:
            differ = int((found.classes != first.classes).sum())
            print(f"  {differ} of {count} predictions differ from the first network's")


def _print_latencies(networks: "dict[str, Network]", spec: EvaluateSpec) -> None:
    import torch

    from qat.commands.answers import latencies

    functions = {name: network.logits for name, network in networks.items()}
    shape = next(iter(networks.values())).preprocessing.shape
    for batch in spec.latency:
        found = latencies(functions, shape, batch=batch, rounds=spec.rounds)
        threads = torch.get_num_threads()
        print(f"batch {batch}, {threads} threads, ms: fastest (median) of {spec.rounds}")
        base = next(iter(found.values()))
        for name, time in found.items():
            ratio = f"  {time.fastest / base.fastest:.3f} of the first" if len(found) > 1 else ""
            print(f"  {1e3 * time.fastest:8.2f} ({1e3 * time.median:.2f}){ratio}  {shown(name)}")


def command() -> None:
    """Entry point of scripts/evaluate.py and of the console script qat-evaluate."""
    run_command(main, __doc__ or "")
