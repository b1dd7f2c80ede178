"""Post-training quantization of one float network after another, by every method and bit width.

    python scripts/post_training.py                         LeNet-5 and ResNet-20, three seeds each
    python scripts/post_training.py network=lenet5 seeds=1 epochs=4
    python scripts/post_training.py record=results/benchmarks/post_training.yaml

    network=lenet5,resnet20     options of model, several with commas
    bits=8,4,3,2                of the weights
    seeds=3                     float networks of each, trained first where they are not there
    epochs=12                   of the float networks' training
    data=digits                 option of data
    folder=runs/post_training   where runs lie
    record=FILE                 also write the table as YAML, as those in results/benchmarks/

Every row is a whole run of the real command with `trainer.max_epochs=0`. Activations stay float, so
that what differs is the codes of the weights, on uniform grids with one scale per output channel.
"""

import contextlib
import io
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measured import record

from qat.commands.options import read_arguments, run_command
from qat.spec.schema import check, option

METHODS = {
    "projection alone": ["init=rounding", "init.batchnorm=false", "init.biases=false"],
    "rounding": ["init=rounding"],
    "comq, cyclic": ["init=comq"],
    "comq, greedy": ["init=comq", "init.order=greedy"],
    "magr_comq": ["init=magr_comq"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PostTrainingSpec:
    """Options of the command; see the module's text."""

    network: str = "lenet5,resnet20"
    bits: str = "8,4,3,2"
    seeds: int = option(3, low=1)
    epochs: int = option(12, low=1)
    data: str = "digits"
    folder: str = "runs/post_training"
    record: str | None = None

    def __post_init__(self) -> None:
        check(self, "")


def main(arguments: Sequence[str]) -> None:
    """Train what is not there, quantize, print and record."""
    spec = read_arguments(PostTrainingSpec, arguments, example="network=lenet5")
    tables = []
    for network in spec.network.split(","):
        rows = [["network", "bits", "codes by", "test %", "per seed", "seconds"]]
        for row in _rows(spec, network):
            print("  ".join(f"{cell:18}" for cell in row).rstrip(), flush=True)
            rows.append(row)
        tables.append(rows)
    if spec.record is not None:
        command = " ".join(["python scripts/post_training.py", *arguments])
        record(spec.record, command, tables, "1 thread")


def _rows(spec: PostTrainingSpec, network: str) -> Iterator[list[str]]:
    shared = [f"model={network}", f"data={spec.data}", "warm_start.epochs=0", "training.threads=1"]
    shared += ["callbacks.diagnostics=null", "callbacks.records=null"]
    place, seeds = Path(spec.folder) / network, range(1, spec.seeds + 1)
    floats = {seed: place / f"float_{seed}" for seed in seeds}
    found = [
        _run(floats[s], [*shared, f"seed={s}", "quant=float", f"trainer.max_epochs={spec.epochs}"])
        for s in seeds
    ]
    yield _row(network, "32", "float", found)
    for bits in spec.bits.split(","):
        grid = [f"quant.weight.bits={bits}", "quant.weight.grid=uniform"]
        grid += ["quant.weight.granularity=channel", "quant.activation.bits=32"]
        for name, method in METHODS.items():
            folder = place / f"{bits} {name}".replace(", ", " ").replace(" ", "_")
            own = [*shared, "quant=bcgd_w4a4", *grid, *method, "trainer.max_epochs=0"]
            found = [
                _run(Path(f"{folder}_{s}"), [*own, f"seed={s}", f"init_from={floats[s]}"])
                for s in seeds
            ]
            yield _row(network, bits, name, found)


def _run(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The summary of a run, which is made if it is not there."""
    from qat.compose import composed, conf_folder
    from qat.train.run import run_job

    if not (folder / "summary.json").is_file():
        run = composed(conf_folder(), [*overrides, "trainer.enable_progress_bar=false"])
        with contextlib.redirect_stdout(io.StringIO()):
            run_job(run.config, run.spec, folder)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def _row(network: str, bits: str, name: str, summaries: Sequence[dict[str, Any]]) -> list[str]:
    tests = [100 * summary["last"]["test_acc"] for summary in summaries]
    seconds = [s["init"]["seconds"] for s in summaries if "init" in s]
    took = f"{statistics.fmean(seconds):.1f}" if seconds else ""
    each = " ".join(f"{test:.1f}" for test in tests)
    return [network, bits, name, f"{statistics.fmean(tests):.1f}", each, took]


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
