"""Place of a process among those of its training."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process stands among those of its training.

    Attributes:
        rank: 0 .. size - 1; the first writes the run's files.
        size: processes in all.
        local_rank: among the processes of this machine; the number of its GPU.
        local_size: processes of this machine.
        node: number of this machine.
        nodes: machines.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    nodes: int = 1
