"""Contents that no file of ours has: each is put at a path where `good` belongs."""

import functools
import gzip
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np

SPARSE = 1 << 43  # bytes that take no space on the disk
MARK = "executed"


class Evil:
    """Unpickled, it makes a folder where the command runs."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


def turned(good, seed):
    """`good` with sixteen bits turned."""
    found, rng = bytearray(good or b"\0"), np.random.default_rng(seed)
    for place, bit in zip(rng.integers(len(found), size=16), rng.integers(8, size=16), strict=True):
        found[place] ^= 1 << int(bit)
    return bytes(found)


@functools.cache
def swollen():
    """A gzip file of half a megabyte that is half a gigabyte inside."""
    return gzip.compress(bytes(1 << 29), compresslevel=1)


def archive(names):
    """A zip file that holds these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in names.items():
            file.writestr(name, content)
    return buffer.getvalue()


def endless(path):
    with path.open("wb") as file:
        file.truncate(SPARSE)


def aliases():
    """YAML of a kilobyte that is a billion values."""
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(["a0: &a0 [x]", *lines]).encode()


_EVIL = pickle.dumps(Evil())
# by a function of what belongs there
BYTES = {
    "nothing in it": lambda good: b"",
    "one letter": lambda good: b"x",
    "noise": lambda good: noise(2000),
    "much noise": lambda good: noise(1_000_000),
    "zeros": lambda good: bytes(len(good)),
    "ones": lambda good: b"\xff" * len(good),
    "its beginning": lambda good: good[:16],
    "its half": lambda good: good[: len(good) // 2],
    "all but a byte": lambda good: good[:-1],
    "twice": lambda good: good + good,
    "turned bits 0": lambda good: turned(good, 0),
    "turned bits 1": lambda good: turned(good, 1),
    "turned bits 2": lambda good: turned(good, 2),
    "a header without end": lambda good: b"\xff" * 8 + good[8:],
    "a header of a terabyte": lambda good: (1 << 40).to_bytes(8, "little") + good[8:],
    "orders to a terminal": lambda good: b"\x1b[2J\x1b]0;x\x07<script>alert(1)</script>\n\r\x9b",
    "a pickle": lambda good: _EVIL,
    "a pickle of torch's": lambda good: archive({"x/data.pkl": _EVIL, "x/version": "3\n"}),
    "an archive that swells": lambda good: swollen(),
    "a member that leaves": lambda good: archive({f"../{MARK}/x": "x", f"/{MARK}": "x"}),
    "aliases": lambda good: aliases(),
    "a call in YAML": lambda good: f"a: !!python/object/apply:os.mkdir [{MARK}]\n".encode(),
    "a target": lambda good: f"_target_: os.mkdir\n_args_: [{MARK}]\n".encode(),
    "depth": lambda good: b"[" * 1_000_000,
    "a long number": lambda good: b"9" * 1_000_000,
    "many rows": lambda good: b"step,val/acc\n" + b"1,2\n" * 5_000_000,
    "no UTF-8": lambda good: b"\xff\xfe{\x00}\x00",
    "another kind of file": lambda good: b"\x89PNG\r\n\x1a\n" + noise(100),
}
# what is no file at all
THINGS = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a full device": lambda path: path.symlink_to("/dev/full"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a folder": Path.mkdir,
    "a file without end": endless,
}
CONTENTS = (*BYTES, *THINGS)


def put(name, path, good):
    """Replace what lies at `path` by a content of this name."""
    path.unlink(missing_ok=True)
    if name in BYTES:
        path.write_bytes(BYTES[name](good))
    else:
        THINGS[name](path)
