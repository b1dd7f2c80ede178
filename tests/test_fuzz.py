"""Fuzzing of the two readers of binary files, signed anew, so that only the reader is in the way.

Each file is opened, or refused in one line by CheckpointError; nothing else. A second each by day;
QAT_FUZZ_SECONDS=600 pytest tests/test_fuzz.py for as long as one likes, each time from other seeds,
which a failure names.
"""

import copy
import hashlib
import io
import math
import os
import random
import resource
import secrets
import signal
import time
import zipfile
from contextlib import contextmanager

import pytest
import torch

from qat.errors import CheckpointError
from qat.export.packed.network import load_packed
from qat.models.small import small_model
from qat.quantize.prepare import prepare
from qat.spec.header import Architecture, Preprocessing
from qat.storage.checkpoint import load, save
from qat.train.weights import read_weights, restore
from support.damaged import parts, sealed, small_file
from support.networks import weights

SECONDS = float(os.environ.get("QAT_FUZZ_SECONDS", "1"))
BY_DAY = "QAT_FUZZ_SECONDS" not in os.environ
LONGEST, MOST_BYTES = 30, 3 << 30  # seconds of one file; of the process, torch with it
SPEC = weights(2)
SHAPE = {"num_classes": 5, "in_channels": 3, "image_size": 16}

ODD = (
    None, True, False, -1, 0, 1, 2, 7, 2**16, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, -0.0,
    float("nan"), float("inf"), "", "x", "x" * 10_000, "\n", "lenet5", "resnet20", "timm", [], {},
    [[]], [1, 2, 3], {"x": 1}, ["a", "b"],
)  # fmt: skip
TENSORS = (
    lambda t: t[:0] if t.dim() else t, lambda t: t.reshape(-1), lambda t: t.unsqueeze(0),
    lambda t: t.double(),
    lambda t: t.to(torch.int64), lambda t: t.to(torch.complex64), lambda t: t.bool(),
    lambda t: t.to_sparse() if t.dim() else t, lambda t: t.to("meta"), lambda t: t * float("nan"),
    lambda t: t / 0, lambda t: t.to(torch.float16), lambda t: t.to(torch.bfloat16),
    lambda t: torch.zeros(1).expand(10**6, 1000), lambda t: torch.empty(0, 2**40),
)  # fmt: skip

# of safetensors, types of the same number of bytes
WIDTHS = (("U8", "I8", "BOOL"), ("F16", "BF16", "I16"), ("F32", "I32"), ("F64", "I64"))


def net():
    torch.manual_seed(0)
    return prepare(small_model("lenet5", **SHAPE), SPEC, example=torch.randn(2, 3, 16, 16))


def places(value, path=()):
    """Every place inside of nested groups and lists."""
    if isinstance(value, dict):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def altered(rng, value):
    """A copy of nested plain values in which one to three places are others."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        found = list(places(value))
        if not found:
            break
        (*groups, last), group = rng.choice(found), value
        for key in groups:
            group = group[key]
        old = group.get(last) if isinstance(group, dict) else group[last]
        do = rng.randrange(4)
        if do == 0 and isinstance(group, dict):
            group.pop(last, None)
        elif do == 1 and isinstance(group, dict):
            group[rng.choice(["x", "", last if isinstance(last, str) else "y", 3])] = old
        elif isinstance(old, torch.Tensor) and do == 2:
            group[last] = rng.choice(TENSORS)(old)
        elif isinstance(old, int) and not isinstance(old, bool) and do == 2:
            group[last] = old + rng.choice([-1, 1, 1000])
        else:
            group[last] = copy.deepcopy(rng.choice(ODD))  # or it would be altered itself
    return value


def spoiled(rng, data):
    """Bytes of which some are turned, cut out, doubled or exchanged."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(max(1, len(found)))
        do = rng.randrange(4)
        if do == 0 and found:
            found[at % len(found)] ^= 1 << rng.randrange(8)
        elif do == 1:
            del found[at : at + rng.choice([1, 8, 100])]
        elif do == 2:
            found[at:at] = found[at : at + rng.choice([1, 8, 100])]
        else:
            found[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), rng.randbytes(8)])
    return bytes(found)


def relabelled(rng, entries):
    """Entries that fit their bytes, under other names, of other types or of other shapes."""
    entries = copy.deepcopy(entries)
    for _ in range(rng.randint(1, 3)):
        one, other = rng.choice(list(entries)), rng.choice(list(entries))
        entry, do = entries[one], rng.randrange(4)
        if do == 0:
            entries[one], entries[other] = entries[other], entries[one]
        elif do == 1:
            same_width = next(kinds for kinds in WIDTHS if entry["dtype"] in kinds)
            entry["dtype"] = rng.choice(same_width)
        elif do == 2:
            entry["shape"] = rng.choice([entry["shape"][::-1], [math.prod(entry["shape"])]])
        else:
            entries[rng.choice([f"{one}x", one.replace("conv", "fc"), ""])] = entries.pop(one)
    return entries


def turned(rng, data):
    """Bytes of which some bits are turned."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def packed_file(rng, good):
    text, entries, body = parts(good)
    do = rng.randrange(5)
    if do in (0, 1):
        text = altered(rng, text)
    if do in (1, 2):
        entries = relabelled(rng, entries)
    if do == 3:
        body = turned(rng, body)
    if do == 4:
        entries, body = altered(rng, entries), spoiled(rng, body)
    return sealed(text, {str(key): value for key, value in entries.items()}, body)


def checkpoint_file(rng, good, content):
    do = rng.randrange(3)
    if do == 0:
        archive = spoiled(rng, good)
    elif do == 1:
        archive = with_other_pickle(rng, good)
    else:
        buffer = io.BytesIO()
        torch.save(altered(rng, content), buffer)
        archive = buffer.getvalue()
    return archive + b"QATSHA\x00\x01" + hashlib.sha256(archive).digest()


def with_other_pickle(rng, good):
    """The same archive with right sums, and another program for the unpickler."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, spoiled(rng, data) if name.endswith("data.pkl") else data)
    return buffer.getvalue()


@contextmanager
def no_longer_than(seconds):
    def stop(*_):
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(make, read, path):
    """Files for SECONDS; how many were opened and how many refused."""
    counts, end = {"opened": 0, "refused": 0}, time.monotonic() + SECONDS
    first = 0 if BY_DAY else secrets.randbits(32)
    while time.monotonic() < end:
        seed = first + sum(counts.values())
        path.write_bytes(make(random.Random(seed)))
        message = answer(read, path, f"seed {seed}")
        counts["refused" if message else "opened"] += 1
        assert len(message.splitlines()) == bool(message), seed
        assert not message or str(path) in message, seed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < MOST_BYTES
    print(f"{counts['opened']:,} opened, {counts['refused']:,} refused, peak {peak >> 20:,} MB")
    return counts


def answer(read, path, note):
    """What a reader says when it refuses a file; nothing if it opens it."""
    try:
        with no_longer_than(LONGEST):
            read(path)
    except CheckpointError as error:
        return str(error)
    except BaseException as error:
        error.add_note(note)
        raise
    return ""


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.filterwarnings("ignore")
def test_packed_files(tmp_path):
    good = small_file(
        SPEC,
        net(),
        architecture=Architecture(family="small", options={"name": "lenet5"}),
        preprocessing=Preprocessing(
            channels=3, size=16, mean=(0.5,) * 3, std=(0.1,) * 3, classes=tuple("abcde")
        ),
    )
    path = tmp_path / "net.safetensors"
    path.write_bytes(good)
    assert load_packed(path).net is not None
    counts = fuzz(lambda rng: packed_file(rng, good), load_packed, path)
    assert counts["refused"] > 0


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.filterwarnings("ignore")
def test_checkpoints(trained, tmp_path):
    path = tmp_path / "net.ckpt"
    source = max((trained / "checkpoints" / "last").glob("*.ckpt"))
    content, good = load(source), source.read_bytes()[:-40]
    shape = content["state_dict"]["net.conv1.weight"].shape
    model = prepare(
        small_model("lenet5", num_classes=10, in_channels=shape[1], image_size=8),
        SPEC,
        example=torch.randn(2, shape[1], 8, 8),
    )

    def read(path):
        restore(copy.deepcopy(model), SPEC, read_weights(path, model), name=str(path))

    save(content, path)
    read(path)
    counts = fuzz(lambda rng: checkpoint_file(rng, good, content), read, path)
    assert counts["refused"] > 0
