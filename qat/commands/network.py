"""A trained network in any form that leaves the trainer: run folder, packed file or ONNX file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from qat.commands.answers import Logits
from qat.errors import CheckpointError, SpecError
from qat.export.integer.network import IntegerNetwork
from qat.export.integer.trace import network_graph
from qat.export.onnx.run import read_onnx
from qat.export.packed.convert import Converted, convert
from qat.export.packed.network import load_packed
from qat.spec.data import DataSpec
from qat.spec.header import Header, Preprocessing
from qat.spec.schema import read

Engine = Literal["float", "integer"]


@dataclass(frozen=True, slots=True)
class Network:
    """A trained network that answers, whatever it came from.

    Attributes:
        kind: what it came from, in words.
        logits: images float32 (N, C, H, W), normalised -> (N, K).
        header: what it says of itself, a file with its accuracy at export.
        preprocessing: of its images, the header's.
        data: options of the data it was trained on as far as they are known: a run folder has all
            of them, a file the name.
        size: bytes of the file, 0 for a run folder.
    """

    kind: str
    logits: Logits
    header: Header
    preprocessing: Preprocessing
    data: DataSpec | None
    size: int = 0


def open_network(
    path: Path,
    *,
    state: Literal["selected", "last"] = "selected",
    engine: Engine = "float",
    threads: int | None = None,
) -> Network:
    """Open a run folder, a packed file or an ONNX file, told apart by what they are.

    Args:
        path: of it.
        state: epoch of a run folder.
        engine: of a packed file or run folder: float is the torch network with hard weights,
            integer the reference in integers. An ONNX file is run by onnxruntime.
        threads: of onnxruntime; None for torch's number.

    Raises:
        CheckpointError: there is nothing, or nothing that can be opened.
        SpecError: engine=integer for an ONNX file, or a network that has no integer form.
    """
    if path.is_dir():
        return _run_folder(path, state, engine)
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; give a run folder, a packed file (*.safetensors) or an ONNX "
            "file of scripts/export.py"
        )
    if path.suffix != ".onnx":
        return _packed_file(path, engine)
    if engine == "integer":
        raise SpecError(f"engine=integer is for run folders and packed files, not for {path}")
    return _onnx_file(path, threads)


def _run_folder(path: Path, state: Literal["selected", "last"], engine: Engine) -> Network:
    from qat.storage.status import state_of
    from qat.train.open_run import open_trained  # Lightning, Hydra: files do without

    trained = open_trained(path, state=state)
    preprocessing = trained.preprocessing
    network: Logits = trained.net
    if engine == "integer":
        converted = convert(trained.net, trained.plan)
        network = _in_integers(trained.net, converted, preprocessing)
    unfinished = "" if state_of(path) == "finished" else f" {state_of(path)},"
    phase = "float warm start, " if trained.is_float else ""
    kind = _named(f"run folder,{unfinished} {phase}{state} epoch", engine)
    header, data = trained.header(), trained.spec.data
    return Network(kind, without_grad(network), header, preprocessing, data)


def _packed_file(path: Path, engine: Engine) -> Network:
    packed = load_packed(path)
    network: Logits = packed.net
    if engine == "integer":
        network = _in_integers(packed.net, packed.converted, _told(packed.header, path))
    kind = _named("packed file", engine)
    return _of_file(path, kind, without_grad(network), packed.header)


def _onnx_file(path: Path, threads: int | None) -> Network:
    network = read_onnx(path, threads=threads)
    kind = f"ONNX file, {network.form} form, onnxruntime"
    return _of_file(path, kind, network, network.header)


def _of_file(path: Path, kind: str, logits: Logits, header: Header) -> Network:
    preprocessing = _told(header, path)
    data = None
    if header.data:
        own = {
            "split": header.split,
            "val_share": header.val_share,
            "test_share": header.test_share,
        }
        read_as = {"image_size": preprocessing.size, "upright": preprocessing.upright}
        values = {"name": header.data, **read_as, **own}
        data = read(DataSpec, values, "data")
    return Network(kind, logits, header, preprocessing, data, path.stat().st_size)


def _in_integers(
    net: nn.Module, converted: Converted, preprocessing: Preprocessing
) -> IntegerNetwork:
    return IntegerNetwork(network_graph(net, converted, torch.zeros(2, *preprocessing.shape)))


def _told(header: Header, path: Path) -> Preprocessing:
    if header.preprocessing is None:
        raise CheckpointError(f"{path} does not tell its preprocessing; export it from a run")
    return header.preprocessing


def _named(kind: str, engine: Engine) -> str:
    return f"{kind}, {'torch' if engine == 'float' else 'integers'}"


def without_grad(network: Logits) -> Logits:
    """The same function, of which autograd records nothing."""

    def logits(image: Tensor) -> Tensor:
        with torch.no_grad():
            return network(image)

    return logits
