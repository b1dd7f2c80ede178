"""Coverage: one network of every module of timm and every family of torchvision, through it all.

    python scripts/coverage.py                          all of them; over an hour on two cores
    python scripts/coverage.py only=vit_tiny,dla34      some, printed
    python scripts/coverage.py record=results/coverage/networks.yaml    and written down

Each is built as `model=timm model.name=NAME` builds it, prepared for 1-bit weights and 4-bit
activations, trained for two steps, audited, packed and opened again, exported in the general ONNX
form and as a network in integers (`coverage_exports.py`), whose predictions are compared. What the
audit claims is held against the values that really enter the products (`operand_values.py`): a
share that is larger than that count is a false claim. `docs/coverage.md` is made of the file that
is written.
"""

import multiprocessing
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from coverage_exports import Exports, exports
from coverage_members import MEMBERS, Member
from operand_values import count_values
from torch import Tensor, nn
from torch.nn import functional as F

from qat import (
    QuantOptimizer,
    QuantSpec,
    audit,
    bcgd,
    convert,
    load_packed,
    parameter_groups,
    prepare,
    save_packed,
    weight_projections,
)
from qat.commands.options import read_arguments, run_command
from qat.errors import QatError, SpecError, one_line
from qat.models.timm_model import timm_model
from qat.quantize.calibrate import start_steps
from qat.spec.header import Header
from qat.spec.schema import check, option
from qat.storage.atomic import write_whole
from qat.storage.provenance import code_version, machine, versions

CLASSES, IMAGES, COUNTED = 10, 2, 8
SLACK = 1e-9  # of a share, for rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageSpec:
    """Options of the command; see the module's text.

    Attributes:
        only: names, with commas between them; all if empty. Of these alone the record's rows are
            written anew.
        record: file to write.
        seconds: after which a network is given up.
        jobs: networks at the same time, each on one core.
    """

    only: str = ""
    record: str | None = None
    seconds: int = option(600, low=10)
    jobs: int = option(2, low=1)

    def __post_init__(self) -> None:
        check(self, "")


@dataclass(kw_only=True)
class Row:
    """What became of one network.

    Attributes:
        name: of the network.
        family: its module of timm, or torchvision.
        pixels: height and width of the images.
        refusal: why it could not be prepared, "" if it could.
        fault: what went wrong afterwards, "" if nothing.
        weights: number of weights that enter products.
        weight_share: of them, on grids by the audit.
        counted_weights: the same by the count of values.
        product_share: of the multiplications, both operands on grids by the audit.
        counted_products: the same by the count of values.
        steps: whether two training steps had a finite loss.
        packed: whether the packed file opens as the same network, bit for bit.
        packed_bytes: size of the packed file.
        promised_bytes: what the audit says of it.
        exports: see `coverage_exports.Exports`.
        seconds: of preparing and auditing.
        peak: MiB of memory, of the whole process.
        commit: of the code.
    """

    name: str
    family: str
    pixels: int
    refusal: str = ""
    fault: str = ""
    weights: int = 0
    weight_share: float = 0.0
    counted_weights: float = 0.0
    product_share: float = 0.0
    counted_products: float = 0.0
    steps: bool = False
    packed: bool = False
    packed_bytes: int = 0
    promised_bytes: int = 0
    exports: Exports = field(default_factory=Exports)
    seconds: float = 0.0
    peak: int = 0
    commit: str = field(default_factory=lambda: str(code_version().commit))

    @property
    def is_false(self) -> bool:
        """Whether the audit claims more than the values show."""
        return (
            self.weight_share > self.counted_weights + SLACK
            or self.product_share > self.counted_products + SLACK
        )


def built(member: Member) -> nn.Module:
    """The float network, with new weights."""
    if member.family == "torchvision":
        import torchvision

        net: nn.Module = torchvision.models.get_model(
            member.name, num_classes=CLASSES, **member.options
        )
        return net
    return timm_model(member.name, num_classes=CLASSES, in_channels=3, image_size=member.pixels)


def covered(member: Member) -> Row:
    """Take one network through it all."""
    row = Row(name=member.name, family=member.family, pixels=member.pixels)
    torch.manual_seed(0)
    images = torch.randn(COUNTED, 3, member.pixels, member.pixels)
    spec = QuantSpec()
    try:
        net = built(member)
        started = time.perf_counter()
        prepare(net, spec, example=images[:IMAGES])
        row.seconds = time.perf_counter() - started
    except (QatError, RuntimeError) as error:
        row.refusal = one_line(error)
        return row
    try:
        _train(net, spec, images[:IMAGES], row)
        if not row.steps:
            row.fault = "two training steps from new weights end in values that are no numbers"
            return row
        _judge(net, spec, images, row)
        row.packed = _is_packed_right(net, spec, member, images[:IMAGES], row)
        row.exports = exports(net, spec, images, example=IMAGES)
    except Exception as error:  # whatever it is, the other networks are still to be seen
        row.fault = f"{type(error).__name__}: {one_line(error)}"
    row.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def _train(net: nn.Module, spec: QuantSpec, images: Tensor, row: Row) -> None:
    """Two steps of blended coarse gradient descent; hard weights are left in the network."""
    groups = parameter_groups(net.named_parameters(), lr=1e-3, weight_decay=None, step_rate=0.01)
    base = torch.optim.SGD(groups, lr=1e-3)
    optimizer = QuantOptimizer(base, weight_projections(net, spec), bcgd())
    start_steps(net, spec, [images])
    net.train()
    losses = []
    for _ in range(2):
        answer = net(images)
        logits = answer if isinstance(answer, Tensor) else answer[0]
        loss = F.cross_entropy(logits, torch.arange(len(images)) % CLASSES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    weights = torch.stack([p.detach().sum() for p in net.parameters()])
    row.steps = bool(torch.isfinite(torch.tensor(losses)).all() and torch.isfinite(weights).all())
    net.eval()


def _judge(net: nn.Module, spec: QuantSpec, images: Tensor, row: Row) -> None:
    started = time.perf_counter()
    found = audit(net, spec, images[:IMAGES])
    row.seconds += time.perf_counter() - started
    count = count_values(net, images)
    row.weights = sum(layer.weights for layer in found.layers)
    row.weight_share, row.counted_weights = found.quantized_share, count.weight_share
    row.product_share, row.counted_products = found.product_share, count.product_share
    row.promised_bytes = found.bytes


@torch.no_grad()
def _is_packed_right(
    net: nn.Module, spec: QuantSpec, member: Member, images: Tensor, row: Row
) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save_packed(path, convert(net, spec), Header(quant=spec))
        row.packed_bytes = path.stat().st_size
        opened = load_packed(path, model=built(member)).net.eval()
    return torch.equal(opened(images), net(images))


def _work(member: Member) -> Row:
    torch.set_num_threads(1)
    with warnings.catch_warnings(action="ignore"):
        return covered(member)


def rows(members: Sequence[Member], *, seconds: int, jobs: int) -> Iterator[Row]:
    """Each network in a process of its own, so that none can take the others with it."""
    context = multiprocessing.get_context("fork")
    with context.Pool(jobs, maxtasksperchild=1) as pool:
        waiting = [(member, pool.apply_async(_work, [member])) for member in members]
        for member, result in waiting:
            try:
                yield result.get(seconds)
            except multiprocessing.TimeoutError:
                yield Row(
                    name=member.name,
                    family=member.family,
                    pixels=member.pixels,
                    fault=f"not done within {seconds} s",
                )


def line(row: Row) -> str:
    """A row in one line."""
    if row.refusal or row.fault:
        return f"{row.name:32} {row.refusal or row.fault}"
    made = [
        f"{name} {'no: ' + why if (why := getattr(row.exports, name)) else 'yes'}"
        for name in ("general", "exact", "integer")
    ]
    marks = ["", "FALSE CLAIM"][row.is_false], ["NOT PACKED", ""][row.packed]
    return (
        f"{row.name:32} {100 * row.weight_share:6.2f} % of {row.weights:,} weights "
        f"(counted {100 * row.counted_weights:.2f}), {100 * row.product_share:6.2f} % of the "
        f"multiplications (counted {100 * row.counted_products:.2f}), {row.seconds:.1f} s "
        f"{' '.join(marks)}".rstrip()
        + f"; {'; '.join(made)}"
    )


def summary(found: Sequence[Row]) -> dict[str, Any]:
    """How many networks, and what became of them."""
    return {
        "networks": len(found),
        "prepared": sum(not row.refusal for row in found),
        "false claims": sum(row.is_false for row in found),
        "two steps": sum(row.steps for row in found),
        "packed bit for bit": sum(row.packed for row in found),
        "general ONNX": sum(not row.exports.general for row in found),
        "of these with other predictions": sum(row.exports.general_differ > 0 for row in found),
        "of those not by a value on a jump": sum(row.exports.is_unexplained for row in found),
        "exact ONNX": sum(not row.exports.exact for row in found),
        "in integers": sum(not row.exports.integer for row in found),
        "of these in integers with other predictions": sum(
            row.exports.integer_differ > 0 for row in found
        ),
        "faults": sum(bool(row.fault) for row in found),
    }


def main(arguments: Sequence[str]) -> None:
    """Run the networks and print a line for each."""
    spec = read_arguments(CoverageSpec, arguments, example="only=resnet18")
    names = [name for name in spec.only.split(",") if name]
    unknown = set(names) - {member.name for member in MEMBERS}
    if unknown:
        raise SpecError(f"only={min(unknown)} is none of scripts/coverage_members.py")
    members = [member for member in MEMBERS if not names or member.name in names]
    before = _before(Path(spec.record)) if names and spec.record else {}
    found = []
    for row in rows(members, seconds=spec.seconds, jobs=spec.jobs):
        found.append(row)
        print(line(row), flush=True)
        if spec.record:  # each time, as the next one may take the machine with it
            _write(Path(spec.record), before, found)
    print(", ".join(f"{count} {what}" for what, count in summary(found).items()))


def _before(path: Path) -> dict[str, Any]:
    """What a record holds, {} if there is none."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, before: Mapping[str, Any], found: Sequence[Row]) -> None:
    """Write rows down, each with its commit, and around them those that a record has of others."""
    known = versions()
    new = {(row.name, row.family): row for row in found}
    old = {(row["name"], row["family"]): row for row in before.get("rows", [])}
    every = []
    for member in MEMBERS:
        key = (member.name, member.family)
        if key in new:
            every.append(new[key])
        elif key in old:
            told = {"commit": before["origin"].rpartition("commit ")[2], **old[key]}
            every.append(Row(**told | {"exports": Exports(**told["exports"])}))
    values = {
        "command": f"python scripts/coverage.py record={path}",
        "origin": f"{machine()['processor']}, torch {known.get('torch')}, "
        f"torchvision {known.get('torchvision')}, timm {known.get('timm')}, commit "
        f"{', '.join(sorted({row.commit for row in every}))}",
        "totals": summary(every),
        "rows": [asdict(row) for row in every],
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    write_whole(path, f"# Written by scripts/coverage.py; not by hand.\n{text}")


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
