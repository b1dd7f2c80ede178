"""Export of a trained run: packed at its true bits, or ONNX for integer kernels.

    python scripts/export.py run=runs/DATE/TIME                  RUN/export/packed.safetensors
    python scripts/export.py run=runs/DATE/TIME format=onnx      RUN/export/faithful.onnx, fast.onnx
    python scripts/export.py run=runs/DATE/TIME format=qonnx     RUN/export/qonnx.onnx, for FPGAs

    run=                 run folder
    format=packed        one of the formats below
    form=both            of ONNX: faithful (sums of two branches in float), fast (in int8), both, or
                         general, for networks of any functions, which both falls back to
    state=selected       epoch of the run: selected or last
    out=FOLDER           where the files go; left out, RUN/export
    trits=false          packed: ternary weights five to a byte instead of four
    calibration=256      fast form: training images that find the steps of its sums
    data.root=FOLDER     where the run's images are by now (and other options of data)
    threads=null         CPU threads

Packed and ONNX files are opened again and asked about all validation and test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qat.commands.formats import FORMATS, format_lines, write
from qat.commands.options import read_arguments, run_command, split_data
from qat.errors import CheckpointError, SpecError, shown
from qat.spec.extras import require_onnx
from qat.spec.schema import check, option
from qat.storage.data_record import read_record
from qat.storage.status import is_run_folder

if TYPE_CHECKING:
    from qat.data.module import ImageData
    from qat.train.open_run import Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSpec:
    """Options of the command; see the module's text."""

    run: str = option(hint="give a run folder, runs/DATE/TIME")
    format: str = option("packed", choices=tuple(FORMATS))
    form: Literal["faithful", "fast", "both", "general"] = "both"
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
    _check(spec)
    import torch

    from qat.commands.answers import check_fits, tell_changes
    from qat.commands.export_job import accuracies, export_job
    from qat.storage.status import state_of
    from qat.train.open_run import open_trained

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    trained = open_trained(Path(spec.run), state=spec.state, key="run")
    own_preprocessing = trained.preprocessing
    trained = replace(trained, data=_data(Path(spec.run), trained, data_arguments))
    trained.data.prepare()
    check_fits(own_preprocessing, trained.data)
    tell_changes(Path(spec.run), trained.data)
    folder = Path(spec.out or Path(spec.run) / "export")
    job = export_job(folder, trained, trits=spec.trits)
    run_state = state_of(Path(spec.run))
    unfinished = "" if run_state == "finished" else f" ({run_state})"
    print(f"run {shown(spec.run)}{unfinished}, {spec.state} epoch: {accuracies(job.expected)}")
    write(spec.format, job, spec)


def _check(spec: ExportSpec) -> None:
    """Refuse options that the format would ignore, and formats that need what is not there."""
    own = FORMATS[spec.format]
    for name, default in ((f.name, f.default) for f in fields(spec)):
        owners = [title for title, row in FORMATS.items() if name in row.options]
        value = getattr(spec, name)
        if owners and spec.format not in owners and value != default:
            typed = str(value).lower() if isinstance(value, bool) else value
            raise SpecError(
                f"{name}={typed} is for format={' or '.join(owners)}; got format={spec.format}"
            )
    if not is_run_folder(Path(spec.run)):
        raise CheckpointError(f"run={spec.run} is no run folder; give runs/DATE/TIME")
    if own.needs_onnx:
        require_onnx()


def _data(run: Path, trained: "Trained", arguments: list[str]) -> "ImageData":
    """The run's data with the parts that it had, or what the command line says of them."""
    from qat.compose import composed_data, conf_folder
    from qat.data.registry import build_data

    seed = trained.spec.seed
    if not arguments:
        return build_data(trained.spec.data, seed=seed, before=read_record(run))
    return build_data(composed_data(conf_folder(), arguments, trained.spec.data), seed=seed)


def command() -> None:
    """Entry point of scripts/export.py and of the console script qat-export."""
    run_command(main, f"{__doc__}\nFormats:\n\n{format_lines()}")
