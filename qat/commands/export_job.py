"""Export job: a run's network on its way into files, with what it answers itself."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qat.commands.answers import Answers, Logits, answers
from qat.commands.network import without_grad
from qat.export.packed.convert import Converted, convert
from qat.quantize.audit import audit
from qat.spec.header import Header
from qat.storage.exported import note_file
from qat.train.open_run import Trained

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
        return _example(self.trained)

    def asked(self, network: Logits) -> Parts:
        """What another form of the network answers about the same images."""
        return _asked(network, self.trained)

    def header_with(self, parts: Parts) -> Header:
        """The header with the accuracy of these answers."""
        return replace(self.header, accuracy={n: part.accuracy for n, part in parts.items()})

    def note(self, path: Path, form: str, found: Parts) -> None:
        """Compare a file's size with the float network's, and write down what is known of it.

        Args:
            path: of the file.
            form: of its kind: packed, faithful, fast or general.
            found: what it answers.
        """
        buffer = io.BytesIO()
        torch.save(self.trained.net.state_dict(), buffer)
        whole, size = len(buffer.getvalue()), path.stat().st_size
        print(f"  1/{whole / size:.2f} of the float state dict, {whole:,} bytes by torch.save")
        entry = {
            "form": form,
            "bytes": size,
            "float_bytes": whole,
            "accuracy": {name: part.accuracy for name, part in found.items()},
            "differ": {name: [self.differ(name, found), len(found[name].labels)] for name in found},
        }
        note_file(path, entry)

    def differ(self, part: str, found: Parts) -> int:
        """How many predictions on a part are not the run's."""
        return int((found[part].classes != self.expected[part].classes).sum())


def export_job(folder: Path, trained: Trained, *, trits: bool = False) -> ExportJob:
    """Convert a run's network and ask it about every validation and test image."""
    converted = convert(trained.net, trained.plan)  # the first to refuse what cannot be exported
    promised = audit(trained.net, trained.plan, _example(trained)).bytes
    header = replace(
        trained.header(),
        source_sha256=hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest(),
        trits=trits,
        promised_bytes=promised,
    )
    expected = _asked(without_grad(trained.net), trained)
    return ExportJob(folder, trained, converted, header, expected)


def accuracies(parts: Parts) -> str:
    """The accuracy of each part in words."""
    return ", ".join(f"{name} {part.accuracy:.4f}" for name, part in parts.items())


def _asked(network: Logits, trained: Trained) -> Parts:
    data = trained.data
    return {
        "validation": answers(network, data.val_dataloader()),
        "test": answers(network, data.test_dataloader()),
    }


def _example(trained: Trained) -> Tensor:
    return torch.zeros(2, *trained.preprocessing.shape)
