"""Failures of the machine, in one line with the setting that helps."""

import re

import torch

from qat.errors import LostProcessError, QatError
from qat.spec.run import RunSpec

_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
_TIMEOUT = re.compile(r"DataLoader timed out after (\d+)")
_KILLED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: (\w+)|exited)"
)


def explained(error: BaseException, spec: RunSpec) -> QatError | None:
    """What a failure of memory or of a loader process is to a user; None for another one.

    Args:
        error: that ended a run.
        spec: its options.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _MEMORY.search(text)
    ):
        return QatError(f"memory is full: {_less_memory(spec)}; then resume goes on")
    if found := _TIMEOUT.search(text):
        return LostProcessError(
            f"no batch came from the loader processes in {found[1]} s (data.timeout): see whether "
            "the disk answers, or read by this process with data.workers=0; then resume goes on"
        )
    if found := _KILLED.search(text):
        how = f"killed ({found[2]})" if found[2] else "gone"
        return LostProcessError(
            f"loader process {found[1].strip()} is {how}: where memory is short, lower "
            f"data.workers (now {spec.data.workers}); then resume goes on"
        )
    return None


def _less_memory(spec: RunSpec) -> str:
    """Settings that need less, those first that change nothing else."""
    ways = []
    if spec.runtime.saved == "floats":
        ways.append("runtime.saved=codes keeps a byte for each quantized input")
    batch, steps = spec.data.batch_size, spec.trainer.get("accumulate_grad_batches", 1)
    if batch > 1:
        ways.append(
            f"data.batch_size={batch // 2} with trainer.accumulate_grad_batches={2 * steps} makes "
            "the same steps in halves"
        )
    if spec.trainer.get("precision", "32-true") == "32-true":
        ways.append("trainer.precision=bf16-mixed halves activations")
    if spec.data.workers:
        ways.append(f"each of data.workers={spec.data.workers} holds images too")
    return ", ".join(ways) or "use a smaller network or image"
