"""Packed files made by hand, with a right digest whatever is in them."""

import hashlib
import json

import pytest

from qat.errors import CheckpointError
from qat.export.packed.convert import convert
from qat.export.packed.file import from_bytes, to_bytes
from qat.spec.header import Header

ZEROS = "0" * 64


def small_file(spec, net, **options):
    return to_bytes(convert(net, spec), Header(quant=spec, **options))


def parts(data):
    """Header text, entries and body of a packed file."""
    end = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:end])
    text = json.loads(entries.pop("__metadata__")["qat"])
    return text, entries, data[end:]


def sealed(text, entries, body, *, extra=""):
    """The file of these parts; `extra` is JSON that stands behind the entries."""
    values = {"format": 1} | text | {"sha256": ZEROS}
    quoted = json.dumps(json.dumps(values, separators=(",", ":")))
    rest = json.dumps(entries, separators=(",", ":"))[1:-1]
    head = f'{{"__metadata__":{{"qat":{quoted}}},{rest}{extra}}}'.encode()
    head += b" " * (-len(head) % 8)
    return resealed(len(head).to_bytes(8, "little") + head + body)


def resealed(data):
    """The same file with zeros for its digest, then with the right one."""
    begin = data.index(b'\\"sha256\\":\\"') + 13
    zeroed = data[:begin] + ZEROS.encode() + data[begin + 64 :]
    digest = hashlib.sha256(zeroed).hexdigest().encode()
    return data[:begin] + digest + data[begin + 64 :]


def refusal(read, *arguments):
    """The one line with which something is refused."""
    with pytest.raises(CheckpointError) as error:
        read(*arguments)
    message = str(error.value)
    assert message
    assert len(message.splitlines()) == 1, message
    return message


def refused(data, origin="some.safetensors"):
    """The one line with which a file is refused; it names the file."""
    message = refusal(from_bytes, data, origin)
    assert message.startswith(origin)
    return message
