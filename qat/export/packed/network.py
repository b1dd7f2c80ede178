"""Packed files of networks: written whole or not at all, opened as networks again."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from qat.errors import CheckpointError, QatError, expect
from qat.export.packed.convert import Converted, put
from qat.export.packed.file import PackedFile, read_packed, to_bytes, unpack
from qat.quantize.loading import refuse_non_finite
from qat.quantize.plan import resolve
from qat.quantize.preparation_version import check_preparation
from qat.quantize.prepare import insert_quantizers, is_prepared
from qat.spec.header import Header
from qat.storage.atomic import replacing


@dataclass(frozen=True, slots=True)
class Packed:
    """A network out of a packed file.

    Attributes:
        net: with hard weights as plain parameters, in eval mode.
        converted: its codes and scales.
        file: what was read.
    """

    net: nn.Module
    converted: Converted
    file: PackedFile

    @property
    def header(self) -> Header:
        """What the file says of itself."""
        return self.file.header


def save_packed(path: str | Path, converted: Converted, header: Header) -> int:
    """Write a packed file, complete or not at all; returns its size in bytes.

    Args:
        path: of the file, by custom *.safetensors.
        converted: as `qat.convert` gives it.
        header: at least `Header(quant=spec)`; what a file without architecture holds is opened
            with `load_packed(path, model=...)`. Where it tells no shape of the images, that of the
            example of `prepare` is written.

    Raises:
        CheckpointError: it cannot be written.
        SpecError: an argument is something else.
    """
    expect(converted, Converted, "converted", "give what convert(net, spec) answers")
    expect(header, Header, "header", "Header(quant=spec) is enough")
    if header.shape is None:
        header = replace(header, example=converted.example)
    header = replace(header, preparation=converted.preparation)
    data = to_bytes(converted, header)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as file:
        file.write(data)
    return len(data)


def load_packed(path: str | Path, *, model: nn.Module | None = None) -> Packed:
    """Open a packed file: verify it, build the network, give it its hard weights.

    Nothing from the file is executed: the architecture is a name of ours, torchvision's or timm's.

    Args:
        path: of the file.
        model: network to take instead of the architecture that the file names: a float one, or
            one that is prepared as the file's was.

    Raises:
        CheckpointError: it is damaged, no packed file, of another format, names no architecture
            while no model is given, or does not fit the network.
    """
    file = read_packed(path)
    header = file.header
    if model is None:
        if header.architecture is None or header.preprocessing is None:
            raise CheckpointError(
                f"{path} names no architecture; open it with qat.load_packed(path, model=NETWORK)"
            )
        from qat.models.by_name import built_network  # torchvision, and perhaps timm

        largest = 8 * file.size
        try:
            model = built_network(header.architecture, header.preprocessing, largest=largest)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
    try:
        if not is_prepared(model):
            shape = header.shape
            example = None if shape is None else torch.zeros(2, *shape)
            insert_quantizers(model, header.quant, example)
        check_preparation(model, header.preparation)
        plan = resolve(model, header.quant)
        model.eval()
        converted = unpack(file, model, plan)
        put(model, converted)
    except QatError as error:
        cure = (
            ""
            if header.shape is not None
            else "; the file does not tell the shape of its images: give a model that "
            "prepare(net, spec, example=images) has made"
        )
        raise CheckpointError(f"{path} does not fit its network: {error}{cure}") from None
    refuse_non_finite(model, str(path))
    return Packed(model, converted, file)
