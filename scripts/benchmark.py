"""Cost of a quantized training step beside a float one, paired in one process.

    python scripts/benchmark.py                       ResNet-20, 128 x 3 x 32 x 32, W1A4
    python scripts/benchmark.py --channels-last --compile --rounds 30
    python scripts/benchmark.py --record FILE         also as YAML, as those in results/benchmarks/

The two networks take turns, so that whatever else the machine does hits both. Prints the median and
the minimum ratio, the parts of a step, and the bytes that the forward pass saves for backward.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measured import record
from torch import Tensor, nn
from torch.nn import functional as F

from qat import QuantOptimizer, QuantSpec, bcgd, parameter_groups, prepare, weight_projections
from qat.models.small import CifarResNet


@dataclass
class Contender:
    """A network with its optimizer."""

    net: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, image: Tensor, label: Tensor) -> tuple[float, float, float]:
        """Seconds of forward, backward and optimizer of one training step."""
        times = [_now()]
        loss = F.cross_entropy(self.net(image), label)
        times.append(_now())
        self.optimizer.zero_grad()
        loss.backward()
        times.append(_now())
        self.optimizer.step()
        times.append(_now())
        return times[1] - times[0], times[2] - times[1], times[3] - times[2]


def build(spec: QuantSpec | None, *, compiled: bool, channels_last: bool) -> Contender:
    """ResNet-20 for 32 x 32 colour images, float if `spec` is None."""
    torch.manual_seed(0)
    net: nn.Module = CifarResNet(20, num_classes=10, in_channels=3).to(DEVICE)
    if spec is not None:
        prepare(net, spec, example=torch.randn(2, 3, 32, 32, device=DEVICE))
    if channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = parameter_groups(net.named_parameters(), lr=0.1, weight_decay=1e-4, step_rate=0.01)
    base = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    wrapped = QuantOptimizer(base, weight_projections(net, spec), bcgd()) if spec else base
    if compiled:
        net.compile(fullgraph=True)
    return Contender(net, wrapped)


def saved_bytes(contender: Contender, image: Tensor, label: Tensor) -> int:
    """Bytes of distinct storages that one forward pass keeps for backward, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in contender.net.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(contender.net(image), label)
    total = sum(kept.values())
    del loss
    return total


def _now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--record")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    layout = {"compiled": args.compile, "channels_last": args.channels_last}
    contenders = [build(None, **layout), build(QuantSpec(), **layout)]
    image = torch.randn(args.batch, 3, 32, 32, device=DEVICE)
    if args.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    label = torch.randint(10, (args.batch,), device=DEVICE)
    timed: list[list[tuple[float, ...]]] = [[], []]
    for round_ in range(args.warm_up + args.rounds):
        for contender, rows in zip(contenders, timed, strict=True):
            parts = contender.step(image, label)
            if round_ >= args.warm_up:
                rows.append((*parts, sum(parts)))
    rows = _print(timed, [saved_bytes(c, image, label) for c in contenders], args.compile)
    if args.record:
        command = " ".join(["python scripts/benchmark.py", *(arguments or sys.argv[1:])])
        where = f"{DEVICE}, {torch.get_num_threads()} threads"
        record(args.record, command, [[["part", "W1A4 over float"], *rows]], where)


def _print(
    timed: list[list[tuple[float, ...]]], kept: list[int], compiled: bool
) -> list[list[str]]:
    """Print the parts of a step; returns the median ratio of each, and of the bytes kept."""
    rows = []
    names = ("forward", "backward", "optimizer", "step")
    ratio: Callable[[int], list[float]] = lambda i: [  # noqa: E731
        q[i] / f[i] for f, q in zip(*timed, strict=True)
    ]
    print(f"torch {torch.__version__}, {DEVICE}, {torch.get_num_threads()} threads, ms")
    for i, name in enumerate(names):
        float_ms, quant_ms = (1e3 * min(row[i] for row in rows) for rows in timed)
        middle = statistics.median(ratio(i))
        rows.append([name, f"{middle:.2f}"])
        print(
            f"{name:9}  float {float_ms:7.1f}  W1A4 {quant_ms:7.1f}  ratio of minima "
            f"{quant_ms / float_ms:.3f}  median of paired ratios {middle:.3f}"
        )
    if not compiled:
        share = kept[1] / kept[0]
        print(f"saved for backward: float {kept[0]:,} bytes, W1A4 {kept[1]:,} ({share:.3f})")
        rows.append(["bytes kept for backward", f"{share:.2f}"])
    return rows


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if __name__ == "__main__":
    main()
