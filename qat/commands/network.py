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
from qat.functional import int8
from qat.functional.runtime import set_runtime
from qat.names import IntegerForward, MemoryFormat
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
    integer_forward: IntegerForward = "auto",
) -> Network:
    """Open a run folder, a packed file or an ONNX file, told apart by what they are.

    Args:
        path: of it.
        state: epoch of a run folder.
        engine: of a packed file or run folder: float is the torch network with hard weights,
            integer the reference in integers. An ONNX file is run by onnxruntime.
        threads: of onnxruntime; None for torch's number.
        integer_forward: of torch networks, whether layers whose operands are both codes are summed
            in int8; auto: a run folder as it was trained, a file where the CPU is made for it and
            it pays.

    Raises:
        CheckpointError: there is nothing, or nothing that can be opened.
        SpecError: engine=integer for an ONNX file, or a network that has no integer form.
    """
    if path.is_dir():
        return _run_folder(path, state, engine, integer_forward)
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; give a run folder, a packed file (*.safetensors) or an ONNX "
            "file of scripts/export.py"
        )
    if path.suffix != ".onnx":
        return _packed_file(path, engine, integer_forward)
    if engine == "integer":
        raise SpecError(f"engine=integer is for run folders and packed files, not for {path}")
    return _onnx_file(path, threads)


def _run_folder(
    path: Path, state: Literal["selected", "last"], engine: Engine, integer_forward: IntegerForward
) -> Network:
    from qat.storage.status import runtime_of, state_of
    from qat.train.open_run import open_trained  # Lightning, Hydra: files do without

    trained = open_trained(path, state=state)
    preprocessing = trained.preprocessing
    if engine == "integer":
        converted = convert(trained.net, trained.plan)
        network: Logits = _in_integers(trained.net, converted, preprocessing)
        how = "integers"
    else:
        before = runtime_of(path).get("integer_forward", "off")
        format_ = trained.spec.runtime.memory_format
        network, how = _by_torch(trained.net, integer_forward, before, format_)
    unfinished = "" if state_of(path) == "finished" else f" {state_of(path)},"
    phase = "float warm start, " if trained.is_float else ""
    kind = f"run folder,{unfinished} {phase}{state} epoch, {how}"
    header, data = trained.header(), trained.spec.data
    return Network(kind, without_grad(network), header, preprocessing, data)


def _packed_file(path: Path, engine: Engine, integer_forward: IntegerForward) -> Network:
    packed = load_packed(path)
    if engine == "integer":
        network: Logits = _in_integers(packed.net, packed.converted, _told(packed.header, path))
        how = "integers"
    else:
        auto = "auto" if int8.is_fast() else "off"
        network, how = _by_torch(packed.net, integer_forward, auto)
    return _of_file(path, f"packed file, {how}", without_grad(network), packed.header)


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


def _by_torch(
    net: nn.Module, asked: IntegerForward, auto: str, memory_format: MemoryFormat = "contiguous"
) -> tuple[Logits, str]:
    """The network as torch runs it, and how, in words."""
    why = int8.reason_against()
    if asked == "on" and why:
        raise SpecError(f"integer_forward=on: {why}; use integer_forward=off")
    wanted = auto if asked == "auto" else asked
    chosen: IntegerForward = "off" if why or wanted == "off" else asked

    def logits(images: Tensor) -> Tensor:
        if memory_format == "channels_last":
            images = images.contiguous(memory_format=torch.channels_last)
        with set_runtime(integer_forward=chosen, memory_format=memory_format):
            found: Tensor = net(images)
        return found

    where = {"off": "torch", "auto": "torch, int8 sums where faster", "on": "torch, int8 sums"}
    return logits, where[chosen]


def without_grad(network: Logits) -> Logits:
    """The same function, of which autograd records nothing."""

    def logits(image: Tensor) -> Tensor:
        with torch.no_grad():
            return network(image)

    return logits
