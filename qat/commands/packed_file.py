"""Packed file of a run's network: written, opened again, compared."""

import torch

from qat.commands.export_job import ExportJob
from qat.commands.network import without_grad
from qat.errors import CheckpointError, shown
from qat.export.packed.network import load_packed, save_packed


def write_packed(job: ExportJob, options: object = None) -> None:
    """Write packed.safetensors, open it again and compare its answers bit by bit.

    Args:
        job: the network.
        options: of the command; those of this format are in the job's header already.

    Raises:
        CheckpointError: it cannot be written, or an answer differs.
    """
    path = job.folder / "packed.safetensors"
    size = save_packed(path, job.converted, job.header_with(job.expected))
    packed = load_packed(path, model=None if job.header.architecture else job.trained.new_network())
    found = job.asked(without_grad(packed.net))
    for name, part in found.items():
        if not torch.equal(part.logits, job.expected[name].logits):
            raise CheckpointError(f"{path}: its logits on {name} images are not the run's")
    print(f"{shown(path)}: {size:,} bytes; logits bit for bit the run's")
    parts = packed.file.bytes_by_kind
    print("  = " + " + ".join(f"{count:,} {kind}" for kind, count in parts.items()))
    promised = job.header.promised_bytes
    print(f"  the audit promised {promised:,}; the difference is header and counters")
    job.note(path, "packed", found)
