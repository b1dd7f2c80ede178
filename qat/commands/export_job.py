"""One network on its way into files: what it is, what it answers, how big it was."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat.commands.answers import Answers, Network, answers
from qat.commands.network import without_grad
from qat.data.module import preprocessing_of
from qat.export.packed.convert import Converted, convert
from qat.models.by_name import architecture_of
from qat.quantize.audit import audit
from qat.spec.header import Header
from qat.storage.provenance import versions
from qat.train.open_run import Trained
from qat.train.targets import instantiated

Parts = Mapping[str, Answers]


@dataclass(frozen=True, slots=True)
class ExportJob:
    """A run's network, its codes, and its answers about all validation and test images.

    Attributes:
        folder: where the files go.
        trained: the run's network and data.
        converted: its codes.
        header: what its files say, without accuracy.
        expected: part -> what the network itself answers.
    """

    folder: Path
    trained: Trained
    converted: Converted
    header: Header
    expected: Parts

    @property
    def example(self) -> Tensor:
        """Two images of nothing."""
        assert self.header.preprocessing is not None  # a run's is known
        return torch.zeros(2, *self.header.preprocessing.shape)

    def asked(self, network: Network) -> Parts:
        """What another form of the network answers about the same images."""
        return _asked(network, self.trained)

    def header_with(self, parts: Parts) -> Header:
        """The header with the accuracy of these answers."""
        return with_accuracy(self.header, {name: part.accuracy for name, part in parts.items()})

    def float_model(self) -> nn.Module:
        """The run's model as its config builds it, for networks that files cannot name."""
        data, classes = self.trained.data, self.trained.classes
        shape: dict[str, Any] = {"num_classes": len(classes), "in_channels": data.channels}
        model: nn.Module = instantiated(
            self.trained.spec.model,
            "model",
            allow=self.trained.allow_targets,
            **shape,
            image_size=data.image_size,
        )
        return model

    def print_ratio(self, size: int) -> None:
        """Compare a file's size with that of the float network."""
        buffer = io.BytesIO()
        torch.save(self.trained.net.state_dict(), buffer)
        whole = len(buffer.getvalue())
        print(f"  1/{whole / size:.2f} of the float state dict, {whole:,} bytes by torch.save")


def export_job(folder: Path, trained: Trained, *, trits: bool = False) -> ExportJob:
    """Convert a run's network and ask it about every validation and test image."""
    converted, header = packed_run(trained, trits=trits)
    expected = _asked(without_grad(trained.net), trained)
    return ExportJob(folder, trained, converted, header, expected)


def accuracies(parts: Parts) -> str:
    """The accuracy of each part in words."""
    return ", ".join(f"{name} {part.accuracy:.4f}" for name, part in parts.items())


def _asked(network: Network, trained: Trained) -> Parts:
    data = trained.data
    return {
        "validation": answers(network, data.val_dataloader()),
        "test": answers(network, data.test_dataloader()),
    }


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
