"""A trained network in any form that leaves the trainer: run folder, packed file or ONNX file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from qat.errors import CheckpointError, SpecError
from qat.export.integer.network import IntegerNetwork
from qat.export.integer.trace import network_graph
from qat.export.onnx.run import read_onnx
from qat.export.packed.network import load_packed
from qat.spec.data import DataSpec
from qat.spec.header import Header, Preprocessing
from qat.spec.schema import read

Engine = Literal["float", "integer"]


@dataclass(frozen=True, slots=True)
class Deployed:
    """A network that answers.

    Attributes:
        kind: what it came from, in words.
        logits: images float32 (N, C, H, W), normalised -> (N, K).
        preprocessing: of its images.
        data: options of the data it was trained on as far as they are known: a run folder has all
            of them, a file the name.
        accuracy: recorded in the file at export, by part.
        size: bytes of the file, 0 for a run folder.
    """

    kind: str
    logits: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing
    data: DataSpec | None
    accuracy: Mapping[str, Any]
    size: int = 0


def open_deployed(
    path: Path,
    *,
    state: Literal["selected", "last"] = "selected",
    engine: Engine = "float",
    threads: int | None = None,
) -> Deployed:
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


def _run_folder(path: Path, state: Literal["selected", "last"], engine: Engine) -> Deployed:
    from qat.data.module import preprocessing_of  # Lightning, Hydra: files do without
    from qat.storage.status import state_of
    from qat.train.open_run import open_trained

    trained = open_trained(path, state=state)
    preprocessing = preprocessing_of(trained.data, trained.classes)
    network: Any = trained.net
    unfinished = "" if state_of(path) == "finished" else f" {state_of(path)},"
    phase = "float warm start, " if trained.is_float else ""
    kind = f"run folder,{unfinished} {phase}{state} epoch"
    if engine == "integer":
        from qat.export.packed.convert import convert

        converted = convert(network, trained.spec.quant)
        network = IntegerNetwork(
            network_graph(network, converted, torch.zeros(2, *preprocessing.shape))
        )
    return Deployed(
        _named(kind, engine), without_grad(network), preprocessing, trained.spec.data, {}
    )


def _packed_file(path: Path, engine: Engine) -> Deployed:
    packed = load_packed(path)
    header = packed.header
    preprocessing = _told(header, path)
    network: Any = packed.net
    if engine == "integer":
        example = torch.zeros(2, *preprocessing.shape)
        network = IntegerNetwork(network_graph(packed.net, packed.converted, example))
    return Deployed(
        _named("packed file", engine),
        without_grad(network),
        preprocessing,
        _named_data(header, preprocessing),
        header.accuracy,
        packed.file.size,
    )


def _onnx_file(path: Path, threads: int | None) -> Deployed:
    network = read_onnx(path, threads=threads)
    header = network.header
    preprocessing = _told(header, path)
    return Deployed(
        f"ONNX file, {network.form} form, onnxruntime",
        network,
        preprocessing,
        _named_data(header, preprocessing),
        header.accuracy,
        path.stat().st_size,
    )


def _told(header: Header, path: Path) -> Preprocessing:
    if header.preprocessing is None:
        raise CheckpointError(f"{path} does not tell its preprocessing; export it from a run")
    return header.preprocessing


def _named(kind: str, engine: Engine) -> str:
    return f"{kind}, {'torch' if engine == 'float' else 'integers'}"


def _named_data(header: Header, preprocessing: Preprocessing) -> DataSpec | None:
    if not header.data:
        return None
    return read(DataSpec, {"name": header.data, "image_size": preprocessing.size}, "data")


def without_grad(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function, of which autograd records nothing."""

    def logits(image: Tensor) -> Tensor:
        with torch.no_grad():
            return network(image)

    return logits
