"""What is no packed file, or no longer one, is refused with one line."""

import io
import json
import pickle
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from qat.export.packed.file import from_bytes, is_packed, unpack
from support.damaged import parts, refusal, refused, resealed, sealed, small_file
from support.networks import lenet, prepared, tiny, weights

SPEC = weights(2)
DATA = small_file(SPEC, prepared(tiny, SPEC))
HEAD = int.from_bytes(DATA[:8], "little")


def flipped(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_every_flipped_bit_is_found():
    for bit in range(8 * len(DATA)):
        refused(flipped(DATA, bit))


def test_flipped_bits_of_a_larger_file_are_found():
    data = small_file(SPEC, prepared(lenet, SPEC))
    for bit in random.Random(0).sample(range(8 * len(data)), 1000):
        refused(flipped(data, bit))


def test_every_truncation_is_found():
    for length in range(len(DATA)):
        refused(DATA[:length])


@given(st.binary(min_size=1, max_size=64))
def test_whatever_is_appended_is_found(more):
    refused(DATA + more)


@pytest.mark.parametrize(
    "length", [0, 1, HEAD - 1, HEAD + 1, len(DATA) - 8, len(DATA), 2**63, 2**64 - 1]
)
def test_another_header_length_is_refused(length):
    data = length.to_bytes(8, "little") + DATA[8:]
    refused(data)
    assert ("does not fit into" in refused(resealed(data))) == (length > len(DATA) - 8)


def test_a_header_beyond_the_limit_is_not_parsed():
    size = 16 * 2**20 + 1
    head = DATA[8 : 8 + HEAD] + b" " * (size - HEAD)
    data = size.to_bytes(8, "little") + head + DATA[8 + HEAD :]
    assert f"its header of {size:,} bytes does not fit" in refused(data)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("the pickle was executed",)


def torch_file():
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        DATA[8:],
        b"no weights here\n" * 40,
        pickle.dumps(Trap()),
        pickle.dumps(Trap(), protocol=0),
        torch_file(),
        save({"weight": torch.zeros(2)}),
        save({"weight": torch.zeros(2)}, {"qat": "{}"}),
        save({"weight": torch.zeros(2)}, {"format": "pt"}),
    ],
    ids=["empty", "line", "cut", "text", "pickle", "pickle0", "torch", "plain", "qat", "pt"],
)
def test_other_files_are_no_packed_files(data, tmp_path):
    assert "is no packed file of qat; make one with" in refused(data)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert not is_packed(path)


@pytest.mark.parametrize("number", [0, 2, 999999999])
def test_another_format_is_named(number):
    text, entries, body = parts(DATA)
    message = refused(sealed(text | {"format": number}, entries, body))
    assert f"is of format {number}; this qat reads format 1" in message


def test_a_file_made_by_hand_is_the_same():
    text, entries, body = parts(DATA)
    assert sealed(text, entries, body) == DATA == resealed(DATA)


def test_an_entry_that_stands_twice_is_refused():
    text, entries, body = parts(DATA)
    name = next(iter(entries))
    again = f',"{name}":{json.dumps(entries[name])}'
    moved = entries[name] | {
        "data_offsets": [len(body), len(body) + entries[name]["data_offsets"][1]]
    }
    file = from_bytes(sealed(text, entries, body, extra=again))
    assert file.tensors.keys() == entries.keys()  # the same entry again says nothing new
    refused(sealed(text, entries, body + body, extra=f',"{name}":{json.dumps(moved)}'))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F99"},
        {"dtype": "F4"},
        {"shape": [-1]},
        {"shape": [2**40, 2**40]},
        {"shape": "many"},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [5, 1]},
    ],
    ids=str,
)
def test_an_entry_that_is_none_is_refused(change):
    text, entries, body = parts(DATA)
    name = next(iter(entries))
    assert "its tensors cannot be read" in refused(
        sealed(text, entries | {name: entries[name] | change}, body)
    )


def test_an_entry_of_unknown_kind_is_refused():
    text, entries, body = parts(DATA)
    name = next(iter(entries))
    for other in ("more/things", "more/\nthings", "codes/\n0", "codes", "", "__class__"):
        renamed = {other if key == name else key: value for key, value in entries.items()}
        assert "an entry of unknown kind" in refused(sealed(text, renamed, body))


def unpacking(entries, body, text):
    file = from_bytes(sealed(text, entries, body))
    return refusal(unpack, file, prepared(tiny, SPEC))


@pytest.mark.parametrize("name", ["codes/0", "scale/0", "codes/5", "scale/5"])
@pytest.mark.parametrize("other", ["codes/7", "scale/more", "float/0.weight"])
def test_a_layer_of_another_name_is_refused(name, other):
    text, entries, body = parts(DATA)
    renamed = {other if key == name else key: value for key, value in entries.items()}
    assert "layers are not the network's" in unpacking(renamed, body, text)


@pytest.mark.parametrize("name", ["codes/0", "scale/5"])
@pytest.mark.parametrize("change", [{"dtype": "I8"}, {"shape": [1, 1, -1]}, {"dtype": "BOOL"}])
def test_codes_and_scales_of_another_type_or_shape_are_refused(name, change):
    text, entries, body = parts(DATA)
    begin, end = entries[name]["data_offsets"]
    if "shape" in change:
        width = {"U8": 1, "F32": 4}[entries[name]["dtype"]]
        change = {"shape": [1, 1, (end - begin) // width]}
    else:
        change = change | {"shape": [end - begin]}
    damaged = entries | {name: entries[name] | change}
    assert unpacking(damaged, body, text).startswith(name.partition("/")[2] + ": ")


@given(st.binary(min_size=27, max_size=27))
def test_any_bytes_as_codes_are_levels_or_refused(random_codes):
    text, entries, body = parts(DATA)
    begin, end = entries["codes/0"]["data_offsets"]
    assert end - begin == len(random_codes)
    file = from_bytes(sealed(text, entries, body[:begin] + random_codes + body[end:]))
    pairs = {byte >> shift & 3 for byte in random_codes for shift in (0, 2, 4, 6)}
    if 0 in pairs:  # the code -2, which is no ternary level
        assert "no level of the ternary grid" in refusal(unpack, file, prepared(tiny, SPEC))
    else:
        weight = unpack(file, prepared(tiny, SPEC)).weights["0"]
        assert set(weight.levels().unique().tolist()) == {pair - 2.0 for pair in pairs}
