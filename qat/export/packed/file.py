"""Packed file: one safetensors file of codes, scales and float residue, with a JSON header.

The entries are `codes/LAYER` (uint8, see `bits.py`), `scale/LAYER` (float32) and `float/KEY`;
the metadata's one key `qat` holds the header, which begins with the number of the format and with
the sha256 of the whole file, taken while these 64 digits are zeros. So every flipped bit is found,
also one in the names, and equal content is the same bytes. Nothing in the file is ever executed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as parsed
from safetensors.torch import save as serialised
from torch import Tensor, nn

from qat.errors import CheckpointError
from qat.export.packed.convert import Converted, quantizer_of
from qat.export.packed.weight_codes import is_ternary, unpacked
from qat.quantize.plan import Plan, resolve
from qat.quantize.reach import known_reach
from qat.quantize.weights import weight_shape
from qat.spec.header import FORMAT, Header, header_from
from qat.storage.reading import parsing, read_regular, regular_file

_NO_DIGEST = "0" * 64
_BEGIN = re.compile(
    rb'\{"__metadata__":\{"qat":"\{\\"format\\":(\d{1,9}),\\"sha256\\":\\"([0-9a-f]{64})\\"'
)
_LENGTH = 8  # bytes that tell the length of safetensors' own header
_LARGEST_HEADER = 16 * 2**20


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A packed file that has been read and verified, its codes not yet unpacked.

    Attributes:
        header: what it says of itself.
        tensors: its entries by name.
        size: bytes of the file.
    """

    header: Header
    tensors: Mapping[str, Tensor]
    size: int

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of codes, scales, float residue and header; their sum is the file's size."""
        kinds = dict.fromkeys(("codes", "scale", "float"), 0)
        for name, tensor in self.tensors.items():
            kinds[name.partition("/")[0]] += tensor.numel() * tensor.element_size()
        return {**kinds, "header": self.size - sum(kinds.values())}


def to_bytes(converted: Converted, header: Header) -> bytes:
    """The packed file of a converted network; equal content gives equal bytes."""
    tensors: dict[str, Tensor] = {}
    for name, weight in converted.weights.items():
        trits = header.trits and weight.is_ternary
        tensors[f"codes/{name}"] = weight.packed(trits=trits)
        tensors[f"scale/{name}"] = weight.scale.contiguous()
    for key, tensor in converted.residue.items():
        tensors[f"float/{key}"] = tensor.contiguous()
    text = f'{{"format":{FORMAT},"sha256":"{_NO_DIGEST}",{header.to_json()[1:]}'
    data = serialised(tensors, {"qat": text})
    begin = _digest_begin(data)
    assert begin is not None  # safetensors writes its metadata first
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:begin] + digest + data[begin + len(digest) :]


def from_bytes(data: bytes, origin: str = "packed file") -> PackedFile:
    """Verify and read a packed file; `origin` names it in messages.

    Raises:
        CheckpointError: it is cut short, altered, of a newer format, or no packed file at all.
    """
    header_bytes = int.from_bytes(data[:_LENGTH], "little")
    begin = _digest_begin(data)
    if begin is None:
        raise CheckpointError(
            f"{origin} is no packed file of qat; make one with scripts/export.py run=RUN_FOLDER"
        )
    if header_bytes > min(_LARGEST_HEADER, len(data) - _LENGTH):
        raise CheckpointError(
            f"{origin}: its header of {header_bytes:,} bytes does not fit into its {len(data):,} "
            "bytes; it is damaged or cut short"
        )
    text = json_header(data[_LENGTH : _LENGTH + header_bytes], origin)
    version = text.pop("format", None)
    if version != FORMAT:
        raise CheckpointError(
            f"{origin} is of format {version}; this qat reads format {FORMAT}, use a newer one"
        )
    claimed = str(text.pop("sha256", ""))
    zeroed = data[:begin] + _NO_DIGEST.encode() + data[begin + len(_NO_DIGEST) :]
    if hashlib.sha256(zeroed).hexdigest() != claimed:
        raise CheckpointError(f"{origin} does not match its sha256: it is damaged or cut short")
    with parsing(f"{origin}: its tensors", "make another with scripts/export.py"):
        tensors = parsed(data)
    return PackedFile(_header(text, origin), _known(tensors, origin), len(data))


def json_header(data: bytes, origin: str) -> dict[str, object]:
    """The header's plain values out of safetensors' own header."""
    try:
        content = json.loads(json.loads(data)["__metadata__"]["qat"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{origin}: its header is no JSON; it is damaged") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{origin}: its header is no JSON object; it is damaged")
    return content


def read_packed(path: str | Path) -> PackedFile:
    """Read and verify a packed file from disk.

    Raises:
        CheckpointError: as `from_bytes`, or it cannot be read.
    """
    return from_bytes(read_regular(path), str(path))


def is_packed(path: str | Path) -> bool:
    """Whether a file begins as a packed file does."""
    with suppress(CheckpointError), regular_file(path) as file:
        return _digest_begin(file.read(_LENGTH + 256)) is not None
    return False


@torch.no_grad()
def unpack(file: PackedFile, model: nn.Module, plan: Plan | None = None) -> Converted:
    """The converted network of a packed file.

    Args:
        file: as `read_packed` gives it.
        model: network of the file's architecture, prepared with the file's options; it says which
            layers and shapes there are.
        plan: of that network; None resolves it.

    Raises:
        CheckpointError: the file's entries do not fit the network.
    """
    plan = resolve(model, plan or file.header.quant)
    layers = {**plan.quantized, **plan.made}
    wanted = {f"{kind}/{name}" for name in layers for kind in ("codes", "scale")}
    found = {name for name in file.tensors if not name.startswith("float/")}
    if wanted != found:
        raise CheckpointError(
            f"the file's layers are not the network's; first difference: {min(wanted ^ found)}"
        )
    weights = {}
    for name, spec in layers.items():
        quantizer = quantizer_of(spec)
        shape = weight_shape(model, name, known_reach(model))
        trits = file.header.trits and is_ternary(quantizer)
        try:
            codes, scale = file.tensors[f"codes/{name}"], file.tensors[f"scale/{name}"]
            weights[name] = unpacked(codes, scale, shape, quantizer, trits=trits)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
    residue = {
        name.removeprefix("float/"): tensor
        for name, tensor in file.tensors.items()
        if name.startswith("float/")
    }
    return Converted(weights, residue, file.header.shape, file.header.preparation)


def _digest_begin(data: bytes) -> int | None:
    """Where the 64 digits of the sha256 begin, None for other files."""
    match = _BEGIN.match(data[_LENGTH : _LENGTH + 256])
    return _LENGTH + match.start(2) if match else None


def _header(values: object, origin: str) -> Header:
    try:
        return header_from(values)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from None


def _known(tensors: Mapping[str, Tensor], origin: str) -> Mapping[str, Tensor]:
    for name in tensors:
        # names go into messages, which are one line each
        if not name.startswith(("codes/", "scale/", "float/")) or not name.isprintable():
            raise CheckpointError(f"{origin} holds an entry of unknown kind, {name!r}")
    return tensors
