"""The laboratory: experiments on the closed forms of the papers, with a verdict per claim.

    python scripts/theory.py                                  all six, in a few minutes on two cores
    python scripts/theory.py experiment=recurrence,blending   some of them
    python scripts/theory.py out=FOLDER seed=1 threads=2

Writes NAME.png, NAME.svg and NAME.csv of each experiment and claims.csv to the folder `out`.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat.commands.options import read_arguments, run_command
from qat.errors import SpecError
from qat.spec.schema import check, option
from qat.storage.csv_table import write_csv


@dataclass(frozen=True, slots=True, kw_only=True)
class TheorySpec:
    """Options of the command.

    Attributes:
        experiment: all, or names separated by commas.
        out: folder of the figures and tables.
        seed: of everything that is drawn.
        threads: CPU threads.
    """

    experiment: str = "all"
    out: str = "runs/theory"
    seed: int = option(0, low=0, high=2**31)
    threads: int = option(1, low=1)

    def __post_init__(self) -> None:
        check(self, "")


def main(arguments: Sequence[str]) -> None:
    """Run the experiments that the arguments ask for."""
    spec = read_arguments(TheorySpec, arguments, example="experiment=recurrence")
    names = _names(spec.experiment)
    folder = Path(spec.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"out={spec.out}: {error.strerror}; choose another folder") from error
    import torch

    torch.set_num_threads(spec.threads)
    claims: list[tuple[str, ...]] = []
    for name in names:
        claims += _experiment(name, folder, spec.seed)
    _write_csv(folder / "claims.csv", ("experiment", "verdict", "claim", "evidence"), claims)
    held = sum(row[1] != "not held" for row in claims)
    print(
        f"{held} of {len(claims)} claims held, some with a condition; figures and tables: {folder}"
    )


def _names(experiment: str) -> list[str]:
    from qat.theory.laboratory import EXPERIMENTS

    if experiment == "all":
        return list(EXPERIMENTS)
    names = [name.strip() for name in experiment.split(",")]
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        raise SpecError(
            f"experiment={unknown[0]} is unknown; choose all, or among {', '.join(EXPERIMENTS)}"
        )
    return names


def _experiment(name: str, folder: Path, seed: int) -> list[tuple[str, ...]]:
    """Run one, write its files, print its table and its claims; returns the rows of claims.csv."""
    from qat.report.figures.style import save_figure
    from qat.report.figures.theory import draw
    from qat.theory.laboratory import run_experiment

    start = time.monotonic()
    result = run_experiment(name, seed=seed)
    seconds = time.monotonic() - start
    save_figure(draw(result), folder / name)
    _write_csv(folder / f"{name}.csv", result.columns, result.rows)
    print(f"== {name} ({seconds:.0f} s)\n")
    print(_table(result.columns, result.rows))
    for claim in result.claims:
        print(f"\n  {claim.verdict.upper()}: {claim.text}\n      {claim.evidence}")
    print(flush=True)
    return [(name, claim.verdict, claim.text, claim.evidence) for claim in result.claims]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    write_csv(path, [dict(zip(columns, row, strict=True)) for row in rows], newline="\r\n")


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns by number, with a legend above: the names are long, the numbers short."""
    legend = [f"  [{index}] {name}" for index, name in enumerate(columns, 1)]
    cells = [[f"[{index}]" for index in range(1, len(columns) + 1)]]
    cells += [[_shown(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    lines = [
        "  " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells
    ]
    return "\n".join([*legend, "", *lines])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
