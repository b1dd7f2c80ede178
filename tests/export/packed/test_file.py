"""The packed file: the same bytes again, and its size."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import pytest
import torch

from qat.errors import CheckpointError
from qat.export.packed.convert import put
from qat.export.packed.file import from_bytes, is_packed, read_packed, to_bytes, unpack
from qat.spec.header import FORMAT, Header, header_from
from support import environment
from support.networks import CASES, FULL, images, lenet, packed, prepared, tiny, weights


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("trits", [False, True])
@pytest.mark.product
def test_pack_load_pack_gives_the_same_bytes(case, trits):
    make, spec = case
    converted, data = packed(make, spec, trits=trits, **FULL)
    file = from_bytes(data)
    fresh = prepared(make, spec, seed=9)
    loaded = unpack(file, fresh)
    assert to_bytes(loaded, file.header) == data
    put(fresh, loaded)
    twin = prepared(make, spec, seed=10)
    put(twin, converted)
    with torch.no_grad():
        assert torch.equal(fresh(images()), twin(images()))


def test_the_bytes_of_each_kind_add_up_to_the_file(case):
    make, spec = case
    converted, data = packed(make, spec)
    file = from_bytes(data)
    kinds = file.bytes_by_kind
    assert sum(kinds.values()) == len(data) == file.size
    every = converted.weights.values()
    assert kinds["codes"] == sum(-(-w.codes.numel() * w.bits // 8) for w in every)
    assert kinds["scale"] == 4 * sum(w.scale.numel() for w in every)
    residue = converted.residue.values()
    assert kinds["float"] == sum(t.numel() * t.element_size() for t in residue)
    assert kinds["header"] == 8 + int.from_bytes(data[:8], "little")


def test_trits_take_a_byte_for_five_weights():
    converted, plain = packed(*CASES["ternary"])
    _, dense = packed(*CASES["ternary"], trits=True)
    counts = [w.codes.numel() for w in converted.weights.values()]
    assert from_bytes(dense).bytes_by_kind["codes"] == sum(-(-count // 5) for count in counts)
    assert len(dense) < len(plain)


def test_trits_leave_other_grids_alone():
    _, plain = packed(*CASES["uniform"])
    _, dense = packed(*CASES["uniform"], trits=True)
    kinds = [from_bytes(data).bytes_by_kind for data in (plain, dense)]
    assert kinds[0]["codes"] == kinds[1]["codes"]


def test_the_header_comes_back(case):
    _, spec = case
    for header in (Header(quant=spec), Header(quant=spec, trits=True, **FULL)):
        assert header_from(json.loads(header.to_json())) == header
        assert "\n" not in header.to_json()


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place():
    _, data = packed(tiny, weights(2), **FULL)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert list(metadata) == ["qat"]
    written = json.loads(metadata["qat"])
    assert written["format"] == FORMAT == 1
    zeroed = data.replace(written["sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(zeroed).hexdigest() == written["sha256"]


def test_other_content_is_another_file():
    spec = weights(2)
    converted, data = packed(tiny, spec)
    assert to_bytes(converted, Header(quant=spec, data="digits")) != data
    converted.residue["5.bias"][0] += 1
    assert to_bytes(converted, Header(quant=spec)) != data


def test_the_order_of_entries_does_not_matter():
    spec = weights(2)
    converted, data = packed(tiny, spec)
    turned = dict(reversed(converted.residue.items()))
    shuffled = dataclasses.replace(converted, residue=turned)
    assert to_bytes(shuffled, Header(quant=spec)) == data


PROGRAM = """
import hashlib
from support.networks import CASES, FULL, images, lenet, packed, prepared, tiny, weights
print(hashlib.sha256(packed(lenet, weights(3), **FULL)[1]).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes():
    command = [sys.executable, "-c", PROGRAM]
    workers = [
        subprocess.Popen(
            command, env=environment(PYTHONHASHSEED=seed), stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    digests = [worker.communicate(timeout=120)[0].strip() for worker in workers]
    assert (
        digests[0] == digests[1] == hashlib.sha256(packed(lenet, weights(3), **FULL)[1]).hexdigest()
    )


def test_a_file_on_disk_is_read_and_recognised(tmp_path):
    _, data = packed(tiny, weights(2), **FULL)
    path = tmp_path / "net.safetensors"
    path.write_bytes(data)
    assert is_packed(path)
    assert read_packed(path).header == from_bytes(data).header
    for other in (tmp_path, tmp_path / "absent"):
        assert not is_packed(other)
        with pytest.raises(CheckpointError, match=r"is missing|Is a directory") as error:
            read_packed(other)
        assert str(other) in str(error.value)
        assert "\n" not in str(error.value)
