"""How the cost of a training step grows with width and batch, quantized and float.

    python scripts/growth.py                              ResNet-20 of widths 1, 2, 4; batches 16 .. 128
    python scripts/growth.py record=results/benchmarks/growth.yaml picture=docs/pictures/growth.png

    quant=bcgd_w1a4                options of conf/quant
    mode=float,fused,integers      ways to train, as in scripts/benchmark.py
    layout=channels_last           or nchw
    batch=32                       images of the widths
    rounds=7                       timed steps of each; all of one size take turns
    record=FILE                    also write the tables as YAML
    picture=FILE                   also draw them

Told are the fastest step in ms and the bytes kept for backward, and the exponents of the straight
lines through their logarithms: 1 is proportional, 2 grows with the square.
"""  # noqa: E501

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from measured import record

from qat.commands.options import read_arguments, run_command
from qat.spec.schema import check, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTHS = {1: "resnet20", 2: "resnet20x2", 4: "resnet20x4"}
_BATCHES = (16, 32, 64, 128)
_WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthSpec:
    """Options of the command; see the module's text."""

    quant: str = "bcgd_w1a4"
    mode: str = "float,fused,integers"
    layout: Literal["nchw", "channels_last"] = "channels_last"
    batch: int = option(32, low=1)
    rounds: int = option(7, low=1)
    record: str | None = None
    picture: str | None = None

    def __post_init__(self) -> None:
        check(self, "")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step costs.

    Attributes:
        mode: title of the way to train.
        size: width or batch.
        ms: of the fastest step.
        kept: bytes for backward.
    """

    mode: str
    size: int
    ms: float
    kept: int


def main(arguments: Sequence[str]) -> None:
    """Measure, print, record and draw."""
    spec = read_arguments(GrowthSpec, arguments, example="mode=float,fused")
    import torch

    by_width = [c for w, name in _WIDTHS.items() for c in _costs(spec, name, spec.batch, w)]
    by_batch = [c for batch in _BATCHES for c in _costs(spec, "resnet20", batch, batch)]
    tables = [_table("width", by_width), _table("batch", by_batch)]
    for table in tables:
        print("\n".join("  ".join(f"{cell:>24}" for cell in row) for row in table))
    if spec.record is not None:
        where = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        record(spec.record, " ".join(["python scripts/growth.py", *arguments]), tables, where)
    if spec.picture is not None:
        Path(spec.picture).parent.mkdir(parents=True, exist_ok=True)
        _draw({"width": by_width, "batch": by_batch}).savefig(spec.picture, dpi=80)


def _costs(spec: GrowthSpec, network: str, batch: int, size: int) -> list[Cost]:
    """The ways to train at one size, in turns."""
    from contenders import MODES, Contender

    from qat import QuantSpec
    from qat.compose import conf_folder, group_option

    options = QuantSpec.from_dict(group_option(conf_folder(), "quant", spec.quant))
    modes = [MODES[name] for name in spec.mode.split(",")]
    made = [
        Contender(network, None if mode.is_float else options, mode, spec.layout, batch=batch)
        for mode in modes
    ]
    times: list[list[float]] = [[] for _ in made]
    for number in range(_WARM_UP + spec.rounds):
        for own, contender in zip(times, made, strict=True):
            seconds = sum(contender.step())
            if number >= _WARM_UP:
                own.append(seconds)
    return [
        Cost(mode.title, size, 1e3 * min(own), contender.saved_bytes())
        for mode, own, contender in zip(modes, times, made, strict=True)
    ]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True))
    return rise / sum((a - middle) ** 2 for a in x)


def _of_mode(costs: Sequence[Cost]) -> dict[str, list[Cost]]:
    return {mode: [c for c in costs if c.mode == mode] for mode in dict.fromkeys(c.mode for c in costs)}  # fmt: skip  # noqa: E501


def _table(name: str, costs: Sequence[Cost]) -> list[list[str]]:
    """A row for each way to train, a column for each size, and the exponents."""
    sizes = list(dict.fromkeys(c.size for c in costs))
    head = [name, *(f"{size}: ms, MB" for size in sizes), "exponents"]
    rows = []
    for mode, own in _of_mode(costs).items():
        powers = [exponent(sizes, [getattr(c, part) for c in own]) for part in ("ms", "kept")]
        cells = [f"{c.ms:.1f}, {c.kept / 1e6:.1f}" for c in own]
        rows.append([mode, *cells, ", ".join(f"{p:.2f}" for p in powers)])
    return [head, *rows]


def _draw(measured: dict[str, list[Cost]]) -> "Figure":
    """Time and bytes against width and batch, on logarithmic axes."""
    from qat.report.figures.style import COLORS, panels

    with panels(2, 2, width=3.8, height=2.8) as (figure, axes):
        for column, (name, costs) in enumerate(measured.items()):
            for row, (part, title) in enumerate((("ms", "step, ms"), ("kept", "kept, MB"))):
                ax: Any = axes[row, column]
                for color, (mode, own) in zip(COLORS, _of_mode(costs).items(), strict=False):
                    sizes = [c.size for c in own]
                    values = [getattr(c, part) / (1 if part == "ms" else 1e6) for c in own]
                    label = f"{mode} ({exponent(sizes, values):.2f})"
                    ax.plot(sizes, values, color=color, marker="o", markersize=4, label=label)
                ax.set(xscale="log", yscale="log", xlabel=name, ylabel=title)
                ax.set_xticks(sizes, labels=[str(size) for size in sizes])
                ax.minorticks_off()
                ax.set_ylim(
                    top=2.5 * max(getattr(c, part) for c in costs) / (1 if part == "ms" else 1e6)
                )
                ax.legend(loc="upper left", title="exponent in brackets")
        return figure


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
