"""What the feature-affinity losses cost, and how well FFA's gradient agrees with FA's.

    python scripts/affinity.py                      maps up to 32 x 32, in a minute on one core
    python scripts/affinity.py full=true            up to 56 x 56, in a few minutes
    python scripts/affinity.py device=cuda batch=64 out=FOLDER threads=1

Forward and backward of one batch of random maps, normalisation included. The methods take turns, so
that whatever else the machine does hits all of them. Writes affinity.csv, gradient.csv, affinity.md
and the figure affinity.png, .svg to the folder `out`; record=FILE also writes the table of costs as
YAML, as those in results/benchmarks/.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from affinity_figure import draw_affinity
from affinity_table import AffinityCost, GradientAgreement, affinity_report
from measured import record
from peak_memory import peak_bytes
from torch import Tensor

from qat.commands.options import read_arguments, run_command
from qat.errors import SpecError, shown
from qat.functional.affinity.feature_affinity import affinity, feature_affinity, projected_affinity
from qat.report.figures.style import save_figure
from qat.spec.schema import check, option
from qat.storage.atomic import write_whole
from qat.storage.csv_table import write_csv

Loss = Callable[[Tensor, Tensor], Tensor]
Name = TypeVar("Name", str, int)
CHANNELS = (16, 64, 256)
SIDES = (8, 16, 32, 56)
AGREEMENT_SHAPES = ((16, 16), (64, 16), (256, 16), (64, 32))
AGREEMENT_COLUMNS = (15, 64, 256)
DRAWS = 5
# a method takes part in this many rounds, and in more while it has used less than these seconds
ROUNDS, SECONDS = 3, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityOptions:
    """Options of the command.

    Attributes:
        out: folder of the tables and the figure.
        threads: CPU threads.
        device: cpu or cuda.
        batch: images.
        full: whether to measure maps of 56 x 56; their n x n matrices need 4 GB for 16 images.
        record: YAML file of the costs.
    """

    out: str = "runs/affinity"
    threads: int = option(1, low=1)
    device: Literal["cpu", "cuda"] = "cpu"
    batch: int = option(16, low=1)
    full: bool = False
    record: str | None = None

    def __post_init__(self) -> None:
        check(self, "")


def matrix_affinity(student: Tensor, teacher: Tensor) -> Tensor:
    """FA of order 2 as one would write it down: whole n x n matrices, left to autograd."""
    difference = affinity(student) - affinity(teacher)
    return difference.square().sum() / (len(student) * difference.shape[1] ** 2)


METHODS: dict[str, Loss] = {
    "FA, n x n by autograd": matrix_affinity,
    "FA, n x n in tiles": lambda s, t: feature_affinity(s, t, form="positions"),
    "FA, cheapest exact form": feature_affinity,
    "FFA, k = 15": lambda s, t: projected_affinity(s, t, columns=15),
    "FFA, k = 64": lambda s, t: projected_affinity(s, t, columns=64),
}


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write what the arguments ask for."""
    options = _options(arguments)
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"out={options.out}: {error.strerror}; choose another folder") from error
    torch.set_num_threads(options.threads)
    costs = [
        cost
        for channels in CHANNELS
        for side in SIDES[: None if options.full else -1]
        for cost in _costs(*_maps(options, channels, side))
    ]
    agreements = [a for shape in AGREEMENT_SHAPES for a in _agreements(*_maps(options, *shape))]
    for name, rows in (("affinity", costs), ("gradient", agreements)):
        write_csv(folder / f"{name}.csv", [asdict(row) for row in rows], newline="\r\n")
    whole, _, exact, *_ = METHODS
    where = f"torch {torch.__version__}, {options.device}, {options.threads} threads"
    title = f"Forward and backward of {options.batch} images, order 2; {where}."
    text = affinity_report(costs, agreements, title=title, ratio=(whole, exact))
    write_whole(folder / "affinity.md", text)
    save_figure(draw_affinity(costs, agreements), folder / "affinity")
    print(f"{text}\ntables and figure: {shown(folder)}")
    if options.record is not None:
        command = " ".join(["python scripts/affinity.py", *arguments])
        where = f"{options.device}, {options.threads} threads"
        record(options.record, command, [_measured(costs)], where)


def _measured(costs: Sequence[AffinityCost]) -> list[list[str]]:
    """A row for each shape: milliseconds / peak megabytes of every method."""
    rows = [["C, H = W", *METHODS]]
    for shape in dict.fromkeys((cost.channels, cost.side) for cost in costs):
        own = {c.method: f"{c.ms:.3g} / {c.mb:.3g}" for c in costs if (c.channels, c.side) == shape}
        rows.append([f"{shape[0]}, {shape[1]}", *(own[name] for name in METHODS)])
    return rows


def _options(arguments: Sequence[str]) -> AffinityOptions:
    options = read_arguments(AffinityOptions, arguments, example="batch=16")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device=cuda: this torch sees no GPU; use device=cpu")
    return options


def _maps(options: AffinityOptions, channels: int, side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, options.batch, channels, side, side)
    student, teacher = torch.randn(shape, generator=generator).to(options.device).unbind()
    return student.requires_grad_(), teacher


def _costs(student: Tensor, teacher: Tensor) -> list[AffinityCost]:
    channels, side = student.shape[1], student.shape[2]
    peaks = {name: peak_bytes(loss, student, teacher) for name, loss in METHODS.items()}
    times = _times(METHODS, student, teacher)
    return [
        AffinityCost(method=m, channels=channels, side=side, ms=times[m], mb=peaks[m] / 1e6)
        for m in METHODS
    ]


def _times(losses: Mapping[Name, Loss], student: Tensor, teacher: Tensor) -> dict[Name, float]:
    """Shortest milliseconds of each loss, which take turns."""
    spent: dict[Name, list[float]] = defaultdict(list)
    live = list(losses)
    while live:
        for name in live:
            start = _now(student)
            torch.autograd.grad(losses[name](student, teacher), student)
            spent[name].append(_now(student) - start)
        live = [m for m in live if len(spent[m]) < ROUNDS or sum(spent[m]) < SECONDS]
    return {name: 1e3 * min(times) for name, times in spent.items()}


def _now(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _agreements(student: Tensor, teacher: Tensor) -> list[GradientAgreement]:
    (exact,) = torch.autograd.grad(feature_affinity(student, teacher), student)
    losses: dict[int, Loss] = {k: _directions(k) for k in AGREEMENT_COLUMNS}
    times = _times(losses, student, teacher)
    found = []
    for k, loss in losses.items():
        gradients = [torch.autograd.grad(loss(student, teacher), student) for _ in range(DRAWS)]
        cosines = torch.cosine_similarity(
            torch.stack([g.flatten() for (g,) in gradients]), exact.flatten(), dim=1
        )
        found.append(
            GradientAgreement(
                columns=k,
                channels=student.shape[1],
                side=student.shape[2],
                ms=times[k],
                cosine=float(cosines.mean()),
                spread=float(cosines.std()),
            )
        )
    return found


def _directions(columns: int) -> Loss:
    """FFA with new directions in every call."""
    generator = torch.Generator().manual_seed(columns)
    return lambda s, t: projected_affinity(s, t, columns=columns, generator=generator)


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
