"""What a run's network needs to become a file: its codes, and a header that tells of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch

from qat.audit import audit
from qat.export.convert import Converted, convert
from qat.export.header import Header
from qat.lit.architecture import architecture_of, preprocessing_of
from qat.machine import versions
from qat.trained import Trained


def packed_run(trained: Trained, *, trits: bool = False) -> tuple[Converted, Header]:
    """Codes and header of a run's network; the accuracy is not measured yet."""
    preprocessing = preprocessing_of(trained.data, trained.classes)
    quant = trained.spec.quant
    converted = convert(trained.net, quant)  # the first to refuse what cannot be exported
    example = torch.zeros(2, *preprocessing.shape)
    header = Header(
        quant=quant,
        architecture=architecture_of(trained.spec.model),
        preprocessing=preprocessing,
        data=trained.spec.data.name,
        versions=versions(),
        source_sha256=hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest(),
        trits=trits,
        promised_bytes=audit(trained.net, quant, example).bytes,
    )
    return converted, header


def with_accuracy(header: Header, accuracy: Mapping[str, float]) -> Header:
    """The header with what was measured."""
    return replace(header, accuracy=dict(accuracy))
