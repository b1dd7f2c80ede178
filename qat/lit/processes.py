"""Processes of a trainer: Lightning told of the group that they have joined already."""

from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from typing_extensions import override

from qat.ranks import group as ranks


class JoinedEnvironment(ClusterEnvironment):
    """Cluster environment of a group that has been joined, whoever started its processes.

    Lightning then starts no process, and looks at no variable of a scheduler's.
    """

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        raise NotImplementedError("the processes have met already")

    @property
    @override
    def main_port(self) -> int:
        raise NotImplementedError("the processes have met already")

    @staticmethod
    @override
    def detect() -> bool:
        return False

    @override
    def world_size(self) -> int:
        return ranks.size()

    @override
    def set_world_size(self, size: int) -> None:
        """It is what it is."""

    @override
    def global_rank(self) -> int:
        return ranks.rank()

    @override
    def set_global_rank(self, rank: int) -> None:
        """It is what it is."""

    @override
    def local_rank(self) -> int:
        return ranks.place().local_rank

    @override
    def node_rank(self) -> int:
        return ranks.place().node


def device_type(accelerator: str) -> Literal["cuda", "cpu"]:
    """Where networks are put: on a GPU of CUDA's (or ROCm's) if one is asked for or found.

    Args:
        accelerator: trainer.accelerator; auto never takes Apple's MPS, as Lightning's own does.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return "cpu"
    return "cuda"


def trainer_options(accelerator: str = "auto") -> dict[str, Any]:
    """Options of a Trainer, and its plugins, for the processes that there are.

    Args:
        accelerator: trainer.accelerator.
    """
    place, device = ranks.place(), device_type(accelerator)
    if place.size == 1:
        environment = LightningEnvironment()
        return {
            "accelerator": device,
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "plugins": [environment],
        }
    # Unused are the steps of activations in the float phase. Looking for what is unused also keeps
    # the buckets of gradients as they are: those that DDP makes anew after its first step would
    # add in another order after a resume.
    strategy = DDPStrategy(find_unused_parameters=True)
    return {
        "accelerator": device,
        "devices": place.local_size,
        "num_nodes": place.nodes,
        "strategy": strategy,
        "plugins": [JoinedEnvironment()],
        "use_distributed_sampler": False,  # the samplers of qat.data divide every batch
    }
