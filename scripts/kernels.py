"""Cost of the quantizers' kernels beside a ReLU, and the bytes that a network keeps for backward.

    python scripts/kernels.py                                   measure and print
    python scripts/kernels.py record=results/benchmarks/kernels.yaml
    python scripts/kernels.py check=results/benchmarks/kernels.yaml

    rounds=20            timed passes of each kernel; they take turns with a ReLU's
    threads=1            of torch
    record=FILE          write the table as YAML, as those in results/benchmarks/
    check=FILE           compare with such a file: exit 1 if a ratio to the ReLU has doubled, or a
                         network keeps more bytes than there

Kernels run on 64 x 16 x 32 x 32 floats (8 MB). A ratio is the fastest of a kernel's passes by the
fastest of the ReLU's that took turns with it, so that it holds on other machines, too. What seems
to have become slower is measured again, twice at most, as other work on a machine may hit one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measured import record

from qat.commands.options import read_arguments, run_command
from qat.errors import DataError, SpecError
from qat.spec.schema import check, option

_SHAPE = (64, 16, 32, 32)
_HEAD = ["kernel", "layout", "forward", "backward"]
_SLACK = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelsSpec:
    """Options of the command; see the module's text."""

    rounds: int = option(20, low=1)
    threads: int = option(1, low=1)
    record: str | None = None
    check: str | None = None

    def __post_init__(self) -> None:
        check(self, "")
        if self.record is not None and self.check is not None:
            raise SpecError("record= writes what check= reads; give one of them")


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and record or compare."""
    spec = read_arguments(KernelsSpec, arguments, example="rounds=20")
    before = None if spec.check is None else _read(spec.check)
    import torch

    torch.set_num_threads(spec.threads)
    ratios = [_HEAD, *_ratios(spec.rounds)]
    kept = [["network", "options", "bytes kept", "of float's"], *_kept()]
    for row in (*ratios, *kept):
        print("  ".join(f"{cell:24}" for cell in row).rstrip())
    if spec.record is not None:
        command = " ".join(["python scripts/kernels.py", *arguments])
        vectors = torch.backends.cpu.get_cpu_capability()
        record(spec.record, command, [ratios, kept], f"{spec.threads} threads, {vectors}")
    if before is not None:
        for _ in range(2):
            if not list(_worse(before, [ratios, kept])):
                break
            again = {tuple(row[:2]): row[2:] for row in _ratios(spec.rounds)}
            ratios = [_HEAD, *(_better(row, again[tuple(row[:2])]) for row in ratios[1:])]
        worse = list(_worse(before, [ratios, kept]))
        if worse:
            raise DataError(f"{spec.check}: {'; '.join(worse)}")
        print(f"no ratio is more than {_SLACK:g} times that of {spec.check}, no network keeps more")


def _better(row: list[str], again: list[str]) -> list[str]:
    """A row with the smaller of two measurements."""
    return [*row[:2], *(min(pair, key=float) for pair in zip(row[2:], again, strict=True))]


def _read(path: str) -> list[list[list[str]]]:
    import yaml

    try:
        tables: list[list[list[str]]] = yaml.safe_load(Path(path).read_text("utf-8"))["tables"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"check={path} is no record of this command ({error})") from None
    return tables


def _worse(before: list[list[list[str]]], now: list[list[list[str]]]) -> Iterator[str]:
    """What has become worse than a record says, in words."""
    known = {tuple(row[:2]): row[2:] for table in before for row in table[1:]}
    for row in now[0][1:]:
        for part, new, old in zip(_HEAD[2:], row[2:], known.get(tuple(row[:2]), []), strict=False):
            if float(new) > _SLACK * float(old):
                yield f"{row[0]}, {row[1]}: {part} takes {new} of a ReLU's time, recorded {old}"
    for row in now[1][1:]:
        old_bytes = known.get(tuple(row[:2]))
        if old_bytes and int(row[2].replace(",", "")) > int(old_bytes[0].replace(",", "")):
            yield f"{row[0]} {row[1]} keeps {row[2]} bytes, recorded {old_bytes[0]}"


def _quantizers() -> dict[str, Callable[[Any], Any]]:
    from qat.nn.activation import ActivationQuantizer
    from qat.nn.learned_clip import LsqActivation, PactActivation
    from qat.nn.sign_activation import SignActivation

    return {
        "staircase, 4 bits": ActivationQuantizer(4),
        "staircase, 4 bits, dsq": ActivationQuantizer(4, "dsq"),
        "staircase, 8 bits": ActivationQuantizer(8, step_derivative="exact"),
        "sign": SignActivation(),
        "lsq, 4 bits": LsqActivation(4),
        "pact, 4 bits": PactActivation(4, start=3.0),
    }


def _ratios(rounds: int) -> Iterator[list[str]]:
    """Rows of a kernel, a layout, and its forward and backward time in those of a ReLU."""
    import torch

    from qat import set_runtime

    for kernels in ("eager", "fused"):
        for layout, memory in (
            ("nchw", torch.contiguous_format),
            ("channels_last", torch.channels_last),
        ):
            x = torch.randn(_SHAPE).to(memory_format=memory).requires_grad_()
            upstream = torch.randn(_SHAPE).to(memory_format=memory)
            for name, quantizer in _quantizers().items():
                with set_runtime(kernels=kernels):  # type: ignore[arg-type]
                    pairs = _paired(torch.relu, quantizer, x, upstream, rounds)
                shares = [min(own for _, own in p) / min(relu for relu, _ in p) for p in pairs]
                yield [f"{name}, {kernels}", layout, *(f"{share:.2f}" for share in shares)]


def _paired(
    relu: Callable[[Any], Any], own: Callable[[Any], Any], x: Any, upstream: Any, rounds: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Seconds of (ReLU, own), forward and backward, after three rounds to warm up."""
    forward, backward = [], []
    for round_ in range(rounds + 3):
        (relu_up, relu_down), (own_up, own_down) = (_timed(f, x, upstream) for f in (relu, own))
        if round_ >= 3:
            forward.append((relu_up, own_up))
            backward.append((relu_down, own_down))
    return forward, backward


def _timed(function: Callable[[Any], Any], x: Any, upstream: Any) -> tuple[float, float]:
    import torch

    learned = list(function.parameters()) if isinstance(function, torch.nn.Module) else []
    begin = time.perf_counter()
    y = function(x)
    middle = time.perf_counter()
    torch.autograd.grad(y, [x, *learned], upstream)
    return middle - begin, time.perf_counter() - middle


def _kept() -> Iterator[list[str]]:
    """Rows of a network, its options, and the bytes that a step keeps for backward."""
    from contenders import MODES, Contender

    from qat import QuantSpec
    from qat.compose import conf_folder, group_option

    for network in ("resnet20", "resnet18"):
        base = Contender(network, None, MODES["float"], "nchw", batch=8).saved_bytes()
        for quant in ("bcgd_w1a1", "bcgd_w1a4", "lsq_w4a4", "pact_w4a4"):
            options = QuantSpec.from_dict(group_option(conf_folder(), "quant", quant))
            own = Contender(network, options, MODES["eager"], "nchw", batch=8).saved_bytes()
            yield [network, quant, f"{own:,}", f"{own / base:.3f}"]


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
