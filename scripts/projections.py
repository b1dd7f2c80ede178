"""Cost of the weights' projections in an optimizer step, as a share of the whole training step.

    python scripts/projections.py                           ResNet-20 and ResNet-18, every grid
    python scripts/projections.py network=resnet20 rule=bcgd grid=binary,ternary rounds=50
    python scripts/projections.py record=results/benchmarks/projections.yaml

    network=resnet20,resnet18   networks of scripts/benchmark.py, several with commas
    grid=...                    binary, ternary, ternary_threshold, uniform_2 .. uniform_8,
                                power_of_two_2 .. power_of_two_6; absent: those of the table
    rule=bcgd,binary_relax      the second while it relaxes
    rounds=20                   timed optimizer steps of each
    steps=4                     timed float training steps, forward and backward, of each network
    threads=1                   of torch
    record=FILE                 also write the table as YAML, as those in results/benchmarks/

What a projection costs is the fastest optimizer step with it, less the fastest of plain SGD on the
same weights, which took turns with it. Times are of the processor in this process, summed over its
threads, so that what else the machine does is not counted, though it takes memory's bandwidth.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from measured import record

from qat.commands.options import read_arguments, run_command
from qat.errors import SpecError
from qat.spec.schema import check, option

_GRIDS = "binary,ternary,uniform_2,uniform_4,uniform_8,power_of_two_2,power_of_two_4"
_RULES = ("bcgd", "binary_relax")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionsSpec:
    """Options of the command; see the module's text."""

    network: str = "resnet20,resnet18"
    grid: str = _GRIDS
    rule: str = ",".join(_RULES)
    rounds: int = option(20, low=1)
    steps: int = option(4, low=1)
    threads: int = option(1, low=1)
    record: str | None = None

    def __post_init__(self) -> None:
        check(self, "")
        for rule in self.rule.split(","):
            if rule not in _RULES:
                raise SpecError(f"rule={rule} is unknown; rule is of {', '.join(_RULES)}")


def main(arguments: Sequence[str]) -> None:
    """Measure, print and record."""
    spec = read_arguments(ProjectionsSpec, arguments, example="network=resnet18")
    import torch

    torch.set_num_threads(spec.threads)
    tables = []
    for network in spec.network.split(","):
        rows = [["network", "grid", "scale", "rule", "ms", "of the step"]]
        for row in _rows(spec, network):
            print("  ".join(f"{cell:16}" for cell in row).rstrip(), flush=True)
            rows.append(row)
        tables.append(rows)
    if spec.record is not None:
        command = " ".join(["python scripts/projections.py", *arguments])
        vectors = torch.backends.cpu.get_cpu_capability()
        record(spec.record, command, tables, f"{spec.threads} threads, {vectors}")


def _rows(spec: ProjectionsSpec, network: str) -> Iterator[list[str]]:
    """Float training's step, then every grid's cost beside it."""
    from contenders import MODES, NETWORKS, Contender

    if network not in NETWORKS:
        raise SpecError(f"network={network} is unknown; network is of {', '.join(NETWORKS)}")
    contender = Contender(network, None, MODES["float"], "nchw")
    times = [_clocked(contender.step) for _ in range(spec.steps + 1)]
    step = min(times[1:])
    yield [network, "float", "", "", f"{1e3 * step:.1f}", ""]
    for grid in spec.grid.split(","):
        for granularity in ("tensor", "channel"):
            for rule in spec.rule.split(","):
                cost = _cost(network, grid, granularity, rule, spec.rounds)
                share = f"{100 * cost / step:.1f} %"
                yield [network, grid, granularity, rule, f"{1e3 * cost:.2f}", share]


def _cost(network: str, grid: str, granularity: Any, rule: str, rounds: int) -> float:
    """Seconds that the fastest optimizer step takes beyond the fastest of plain SGD."""
    plain, own = _optimizer(network), _optimizer(network, grid, granularity, rule)
    pairs = [(_clocked(plain.step), _clocked(own.step)) for _ in range(rounds + 2)][2:]
    return min(ours for _, ours in pairs) - min(base for base, _ in pairs)


def _optimizer(network: str, grid: str = "", granularity: Any = "tensor", rule: str = "") -> Any:
    """SGD of a new network with gradients, in a QuantOptimizer if there is a grid."""
    import torch
    from contenders import NETWORKS

    from qat import QuantOptimizer, bcgd, binary_relax

    torch.manual_seed(0)
    net = NETWORKS[network].make()
    for p in net.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    base = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    if not grid:
        return base
    quantizer = _quantizer(grid, granularity)
    weights = {p: quantizer for p in net.parameters() if p.ndim > 1}
    rules = {"bcgd": bcgd(), "binary_relax": binary_relax(1.0, 1.0, hard_from=10**9)}
    return QuantOptimizer(base, weights, rules[rule])


def _quantizer(name: str, granularity: Any) -> Any:
    from qat.nn.weight import WeightQuantizer

    kind, _, bits = name.rpartition("_") if name[-1].isdigit() else (name, "", "")
    own: Any = kind
    return WeightQuantizer(int(bits or (1 if kind == "binary" else 2)), granularity, own)


def _clocked(step: Any) -> float:
    begin = time.process_time()
    step()
    return time.process_time() - begin


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
