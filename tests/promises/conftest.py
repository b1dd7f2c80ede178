"""The table: every update rule times two base optimizers on a small binary network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qat.nn.activation import ActivationQuantizer
from qat.nn.weight import WeightQuantizer
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import UpdateRule, bcgd, binary_connect, binary_relax, float_only

RULES: dict[str, Callable[[], UpdateRule]] = {
    "float_only": float_only,
    "binary_connect": binary_connect,
    "binary_relax": lambda: binary_relax(1.0, 1.5, hard_from=1000),
    "binary_relax_hard": lambda: binary_relax(1.0, 1.5, hard_from=3),
    "bcgd": lambda: bcgd(0.3),
}
BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda named: torch.optim.SGD(named, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda named: torch.optim.AdamW(named, lr=0.02, weight_decay=1e-2),
}


class Net(nn.Module):
    """Two binary layers around a 2-bit activation; the biases stay float."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(6, 8)
        self.act = ActivationQuantizer(2)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    rule: str
    base: str

    def make(
        self, seed: int = 0, rule: UpdateRule | None = None, dtype: torch.dtype = torch.float32
    ) -> "Run":
        net = Net(seed).to(dtype)
        base = BASES[self.base](net.named_parameters())
        projections = {layer.weight: WeightQuantizer(1) for layer in (net.first, net.last)}
        return Run(net, QuantOptimizer(base, projections, rule or RULES[self.rule]()))

    def plain(self, seed: int = 0) -> tuple[Net, torch.optim.Optimizer]:
        net = Net(seed)
        return net, BASES[self.base](net.named_parameters())


@dataclass
class Run:
    """A network and its optimizer."""

    net: Net
    optimizer: QuantOptimizer

    def loss(self, number: int) -> Tensor:
        """Loss on batch `number`, the same for every network."""
        return batch_loss(self.net, number)

    def train(self, start: int, stop: int) -> "Run":
        for number in range(start, stop):
            self.optimizer.zero_grad()
            self.loss(number).backward()
            self.optimizer.step()
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step may change, copied."""
        found = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        found |= {f"latent.{i}": w for i, (w, _) in enumerate(self.optimizer.latent_pairs())}
        for i, state in enumerate(self.optimizer.state_dict()["state"].values()):
            tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
            found |= {f"state.{i}.{k}": v for k, v in tensors.items()}
        found["completed"] = torch.tensor(self.optimizer.completed_steps)
        return {k: v.detach().clone() for k, v in found.items()}


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return (
        torch.randn(12, 6, generator=generator),
        torch.randint(0, 3, (12,), generator=generator),
    )


def batch_loss(net: nn.Module, number: int, rows: slice = slice(None)) -> Tensor:
    x, y = batch(number)
    x = x.to(next(net.parameters()).dtype)
    return nn.functional.cross_entropy(net(x[rows]), y[rows])


@pytest.fixture(params=BASES)
def base(request):
    return request.param


@pytest.fixture(params=RULES)
def case(request, base):
    return Case(request.param, base)


@pytest.fixture
def part_loss():
    return batch_loss


@pytest.fixture
def same():
    """Asserts that two runs hold the same numbers, bit for bit."""

    def check(a, b):
        left, right = (x.tensors() if isinstance(x, Run) else x for x in (a, b))
        assert left.keys() == right.keys()
        different = [k for k in left if not torch.equal(left[k], right[k])]
        assert not different

    return check


@pytest.fixture
def cell(base):
    """A case of the base optimizer alone; its rule is given to `make`."""
    return Case("binary_connect", base)
