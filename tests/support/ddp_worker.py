"""One rank of a data-parallel run: python ddp_worker.py RANK WORLD FOLDER."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qat.nn.activation import ActivationQuantizer
from qat.nn.weight import WeightQuantizer
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import bcgd, binary_relax

RULES = {"bcgd": lambda: bcgd(0.3), "binary_relax": lambda: binary_relax(1.0, 1.5, hard_from=4)}


def train(rank: int, world: int, rule: str) -> dict[str, torch.Tensor]:
    """Six steps; every rank starts elsewhere, as if nobody had seeded."""
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Linear(6, 8), ActivationQuantizer(2), nn.Linear(8, 3)).double()
    wrapped = DistributedDataParallel(net) if world > 1 else net
    base = torch.optim.SGD(net.named_parameters(), lr=0.05, momentum=0.9)
    projections = {net[0].weight: WeightQuantizer(1), net[2].weight: WeightQuantizer(1)}
    optimizer = QuantOptimizer(base, projections, RULES[rule]())
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(12, 6, generator=generator).double()
        y = torch.randint(0, 3, (12,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x[rank::world]), y[rank::world]).backward()
        optimizer.step()
    latent = {f"latent.{i}": w for i, (w, _) in enumerate(optimizer.latent_pairs())}
    return {**net.state_dict(), **latent}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.save({rule: train(rank, world, rule) for rule in RULES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
