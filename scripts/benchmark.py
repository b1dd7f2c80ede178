"""Cost of a low-bit training step beside a float one: time, bytes kept for backward, live peak.

    python scripts/benchmark.py                          ResNet-20, W1A4, in both layouts
    python scripts/benchmark.py network=resnet18,mobilenet_v2,vit_tiny quant=bcgd_w2a4
    python scripts/benchmark.py mode=float,fused,brevitas rounds=30
    python scripts/benchmark.py peak=true record=results/benchmarks/step.yaml

    network=resnet20     resnet20 (128 x 3 x 32 x 32), resnet18, mobilenet_v2 or vit_tiny
                         (32 x 3 x 64 x 64); several with commas between them
    quant=bcgd_w1a4      any options of conf/quant, several with commas
    mode=...             ways to train: float, float_compiled, float_bf16; ours: eager, fused (codes
                         kept), eager_floats, fused_floats, integers (int8 forward), integers_eager,
                         integers_bf16, compiled, bf16, bf16_eager, bf16_integers; others: naive,
                         brevitas, brevitas_first, parq, fake_quantize; absent: all but these
    layout=...           nchw, channels_last, or both with a comma
    batch=null           images; null for each network's own number
    rounds=15            timed steps of each contender; they take turns
    warm_up=3            steps of each before, in which kernels are compiled
    peak=false           also the live peak of a step, each in a process of its own
    threads=null         of torch
    record=FILE          also write the table as YAML, as those in results/benchmarks/, and as CSV

All contenders of a network live in one process and take turns, step by step, so that whatever else
the machine does hits all of them. Shown are fastest steps in ms, the ratio to float's fastest, and
the median of the ratios of each round; float is that of the same layout and precision.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measured import record

from qat.commands.options import read_arguments, run_command
from qat.errors import QatError, SpecError
from qat.spec.schema import check, option

if TYPE_CHECKING:
    from contenders import Contender, Layout, Mode

    from qat import QuantSpec

_PARTS = ("forward", "backward", "optimizer", "step")
_DEFAULT = (
    "float,float_compiled,float_bf16,eager_floats,eager,fused_floats,fused,integers,integers_bf16,"
    "compiled,bf16_eager,bf16,bf16_integers"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSpec:
    """Options of the command; see the module's text."""

    network: str = "resnet20"
    quant: str = "bcgd_w1a4"
    mode: str = _DEFAULT
    layout: str = "nchw,channels_last"
    batch: int | None = option(None, low=1)
    rounds: int = option(15, low=1)
    warm_up: int = option(3, low=1)
    peak: bool = False
    threads: int | None = option(None, low=1)
    record: str | None = None
    # of one contender, in a process of its own
    peak_of: str | None = None

    def __post_init__(self) -> None:
        check(self, "")


@dataclass(slots=True)
class Row:
    """What was measured of a contender.

    Attributes:
        network: its name.
        quant: options' name; "" of a float network.
        layout: nchw or channels_last.
        mode: its key in MODES.
        times: seconds of forward, backward, optimizer and step, of each round.
        first: seconds of the warm-up, compiling among them.
        saved: bytes kept for backward; None where a compiled graph does not show them.
        peak: bytes live at most within a step, beyond those before it; None if not measured.
    """

    network: str
    quant: str
    layout: str
    mode: str
    times: list[tuple[float, ...]]
    first: float
    saved: int | None
    peak: int | None = None


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    spec = read_arguments(BenchmarkSpec, arguments, example="network=resnet18")
    import torch
    from contenders import MODES, NETWORKS

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    _check_names("network", spec.network, NETWORKS)
    _check_names("mode", spec.mode, MODES)
    _check_names("layout", spec.layout, ("nchw", "channels_last"))
    if spec.peak_of is not None:
        print(_peak_here(spec))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = (
        f"{device}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    print(f"torch {torch.__version__}, {where}; ms of the fastest step (ratio, median ratio)")
    tables: list[list[list[str]]] = []
    lines: list[list[str]] = []
    for network in spec.network.split(","):
        rows = _measured(spec, network, device)
        tables.append(_table(rows, MODES))
        lines += [_csv(row, _base(rows, row, MODES)) for row in rows]
    if spec.record is not None:
        command = " ".join(["python scripts/benchmark.py", *arguments])
        record(spec.record, command, tables, where)
        Path(spec.record).with_suffix(".csv").write_text(
            "\n".join(",".join(line) for line in [_CSV_HEAD, *lines]) + "\n", encoding="utf-8"
        )


def _check_names(key: str, names: str, known: Any) -> None:
    for name in names.split(","):
        if name not in known:
            raise SpecError(f"{key}={name} is unknown; {key} is of {', '.join(known)}")


def _measured(spec: BenchmarkSpec, network: str, device: str) -> list[Row]:
    """All contenders of a network, in turns."""
    from contenders import MODES

    contenders = list(_warmed_up(spec, network, device))
    rows = [row for row, _ in contenders]
    for _ in range(spec.rounds):
        for row, made in contenders:
            parts = made.step()
            row.times.append((*parts, sum(parts)))
    for row, made in contenders:
        row.saved = None if made.mode.compiled else made.saved_bytes()
        row.peak = _peak_elsewhere(spec, row) if spec.peak else None
        print(_line(row, _base(rows, row, MODES)), flush=True)
    return rows


def _warmed_up(spec: BenchmarkSpec, network: str, device: str) -> "Iterator[tuple[Row, Contender]]":
    """Contenders after their first steps; said of those that cannot be."""
    from contenders import MODES
    from contenders import Contender as Made

    for quant, layout, name in _jobs(spec):
        mode = MODES[name]
        options = None if mode.is_float else _options(quant)
        try:
            made = Made(network, options, mode, layout, batch=spec.batch, device=device)
            begin = time.perf_counter()
            for _ in range(spec.warm_up):
                made.step()
        except (QatError, ImportError) as error:
            print(f"{network}, {quant}, {layout}, {name}: {str(error).splitlines()[0]}", flush=True)
            continue
        yield Row(network, quant, layout, name, [], time.perf_counter() - begin, None), made


def _jobs(spec: BenchmarkSpec) -> Iterator[tuple[str, "Layout", str]]:
    """Options, layout and mode of every contender; a float network is there once for a layout."""
    from contenders import MODES

    for layout in spec.layout.split(","):
        for mode in spec.mode.split(","):
            for quant in [""] if MODES[mode].is_float else spec.quant.split(","):
                yield quant, layout, mode  # type: ignore[misc]


def _options(name: str) -> "QuantSpec":
    from qat import QuantSpec
    from qat.compose import conf_folder, group_option

    return QuantSpec.from_dict(group_option(conf_folder(), "quant", name))


def _base(rows: Sequence[Row], row: Row, modes: "dict[str, Mode]") -> Row | None:
    """The float network that a row is compared with."""
    wanted = modes[row.mode].base
    return next((r for r in rows if r.mode == wanted and r.layout == row.layout), None)


def _fastest(row: Row, part: int) -> float:
    return min(times[part] for times in row.times)


def _ratios(row: Row, base: Row | None, part: int) -> tuple[float, float] | None:
    """Ratio of the fastest, and median of each round's ratio."""
    if base is None:
        return None
    pairs = zip(row.times, base.times, strict=True)
    middle = statistics.median(own[part] / other[part] for own, other in pairs)
    return _fastest(row, part) / _fastest(base, part), middle


def _cells(row: Row, base: Row | None) -> list[str]:
    """Parts of a step, then bytes."""
    cells = []
    for part in range(len(_PARTS)):
        ratio = _ratios(row, base, part)
        shown = "" if ratio is None or base is row else f" ({ratio[0]:.2f}, {ratio[1]:.2f})"
        cells.append(f"{1e3 * _fastest(row, part):.1f}{shown}")
    for own, other in ((row.saved, base and base.saved), (row.peak, base and base.peak)):
        share = f" ({own / other:.3f})" if own and other and base is not row else ""
        cells.append("" if own is None else f"{own / 1e6:.1f}{share}")
    return cells


def _line(row: Row, base: Row | None) -> str:
    name = " ".join(filter(None, (row.network, row.quant, row.layout, row.mode)))
    parts = zip((*_PARTS, "MB kept", "MB live"), _cells(row, base), strict=True)
    return f"{name}: " + "  ".join(f"{part} {cell}" for part, cell in parts if cell)


def _table(rows: Sequence[Row], modes: "dict[str, Mode]") -> list[list[str]]:
    head = ["network", "bits", "layout", "mode", *_PARTS, "MB kept", "MB live"]
    body = [
        [
            row.network,
            row.quant,
            row.layout,
            modes[row.mode].title,
            *_cells(row, _base(rows, row, modes)),
        ]
        for row in rows
    ]
    used = [i for i in range(len(head)) if any(line[i] for line in body)]
    return [[line[i] for i in used] for line in (head, *body)]


_CSV_HEAD = [
    "network", "quant", "layout", "mode", "part", "fastest_ms", "ratio", "median_ratio",
    "first_s", "kept_bytes", "live_bytes", "processor",
]  # fmt: skip


def _csv(row: Row, base: Row | None) -> list[str]:
    from qat.storage.provenance import machine

    ratio = _ratios(row, base, 3)
    shown = [f"{r:.4f}" for r in ratio] if ratio else ["", ""]
    kept = ["" if n is None else str(n) for n in (row.saved, row.peak)]
    name = [row.network, row.quant, row.layout, row.mode]
    fastest = f"{1e3 * _fastest(row, 3):.3f}"
    return [*name, "step", fastest, *shown, f"{row.first:.2f}", *kept, str(machine()["processor"])]


def _peak_elsewhere(spec: BenchmarkSpec, row: Row) -> int | None:
    """Live peak of a step in a process whose large tensors are each given back when they go."""
    own = [f"network={row.network}", f"layout={row.layout}", f"mode={row.mode}", "peak_of=step"]
    own += [f"quant={row.quant}"] if row.quant else []
    own += [f"batch={spec.batch}"] if spec.batch else []
    own += [f"threads={spec.threads}"] if spec.threads else []
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, *own], env=environment, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def _peak_here(spec: BenchmarkSpec) -> int:
    """Bytes of this process that are live at most within a step, beyond those before it."""
    import torch
    from contenders import MODES, Contender

    mode, device = MODES[spec.mode], "cuda" if torch.cuda.is_available() else "cpu"
    options = None if mode.is_float else _options(spec.quant)
    layout: Any = spec.layout
    made = Contender(spec.network, options, mode, layout, batch=spec.batch, device=device)
    for _ in range(3):
        made.step()
    made.optimizer.zero_grad()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        made.step()
        return int(torch.cuda.max_memory_allocated()) - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _kilobytes("VmRSS")
    made.step()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
