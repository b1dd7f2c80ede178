"""Every reader looks first: pipes, devices, links, files without end, paths of no file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qat.errors import CheckpointError
from qat.export.packed.file import is_packed, read_packed
from qat.storage import reading
from qat.storage.checkpoint import last_good, load, verify
from qat.storage.csv_table import GrowingCsv, read_rows
from qat.storage.reading import parsing, read_regular
from qat.storage.run_files import read_config, read_json, read_yaml
from qat.storage.status import read_status
from qat.train.weights import read_weights
from support import environment

SPARSE = 1 << 50  # bytes; takes no space on the disk


def pipe(path):
    os.mkfifo(path)


def link_to(target):
    return lambda path: path.symlink_to(target)


def endless(path):
    with path.open("wb") as file:
        file.truncate(min(SPARSE, 1 << 43))


STRANGE = {
    "pipe": pipe,
    "link to /dev/zero": link_to("/dev/zero"),
    "link to /dev/full": link_to("/dev/full"),
    "link to a pipe": lambda path: (pipe(path.with_name("pipe")), path.symlink_to("pipe")),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": link_to("nothing"),
    "folder": Path.mkdir,
    "no end": endless,
}
READERS = {
    "bytes": read_regular,
    "checkpoint": load,
    "verified": verify,
    "JSON": read_json,
    "YAML": read_yaml,
    "packed": read_packed,
    "weights": lambda path: read_weights(path, torch.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_of_ours_is_refused_in_one_line(tmp_path, kind, reader):
    path = tmp_path / "file.pt"
    STRANGE[kind](path)
    with pytest.raises(CheckpointError) as caught:
        READERS[reader](path)
    assert "file.pt" in str(caught.value) or str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", STRANGE)
def test_what_may_be_missing_is_as_if_it_were(tmp_path, kind):
    for name in ("status.json", "metrics.csv"):
        STRANGE[kind](tmp_path / name)
        (tmp_path / "pipe").unlink(missing_ok=True)
    assert read_status(tmp_path) == {}
    assert read_rows(tmp_path / "metrics.csv") == []
    assert not is_packed(tmp_path / "metrics.csv")


def test_the_newest_checkpoint_is_passed_over_if_it_is_none(tmp_path, caplog):
    from qat.storage.checkpoint import checkpoint_name, save

    save({"w": torch.ones(2)}, tmp_path / checkpoint_name(3))
    pipe(tmp_path / checkpoint_name(4))
    endless(tmp_path / checkpoint_name(5))
    assert last_good(tmp_path) == tmp_path / checkpoint_name(3)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "https://host/file.ckpt", ""])
def test_a_path_of_no_file_is_one_line(name, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        read_regular(f"{tmp_path}/{name}" if "://" not in name else name)
    assert "\n" not in str(caught.value)


def test_a_file_may_be_as_large_as_it_says(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, most=5) == b"12345"
    with pytest.raises(CheckpointError, match="more than the 4 bytes that ours have"):
        read_regular(path, most=4)
    monkeypatch.setattr(reading, "memory_limit", lambda: 3)
    with pytest.raises(CheckpointError, match="more than the 3 bytes that fit into memory here"):
        read_regular(path)


def test_a_small_file_takes_little_memory(tmp_path):
    """Under a limit, as of a job on a cluster, no more is asked for than the file has."""
    (tmp_path / "file").write_bytes(b"123")
    code = (
        "import resource; from qat.storage.reading import read_regular\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        f"assert read_regular({str(tmp_path / 'file')!r}) == b'123'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_a_table_that_is_to_grow_says_what_it_is(tmp_path):
    pipe(tmp_path / "metrics.csv")
    with pytest.raises(Exception, match=r"metrics\.csv cannot be read: it is no regular file"):
        GrowingCsv(tmp_path / "metrics.csv", ["step"]).append([{"step": 1}])


def test_what_a_parser_says_becomes_one_line():
    for error in (EOFError(), KeyError("a\nb"), RecursionError("deep"), struct_error()):
        with (
            pytest.raises(CheckpointError, match=r"^file cannot be read \(.*\); give another$"),
            parsing("file", "give another"),
        ):
            raise error
    with pytest.raises(CheckpointError, match=r"^ours$"), parsing("file", "give another"):
        raise CheckpointError("ours")
    with pytest.raises(KeyboardInterrupt), parsing("file", "give another"):
        raise KeyboardInterrupt


def struct_error():
    import struct

    return struct.error("unpack requires a buffer of 4 bytes")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe", b"a: !!python/object/apply:os.getcwd []", b"a: \x00", b"a: \x1b", b"- 1",
        b"a: {", b"[" * 100_000, b"a: &a [*a]", b"? {a: b}\n: 1", b"a: !x 1",
        b"a: " + b":".join([b"59"] * 50_000), b"a: 0x" + b"f" * 50_000, b"a: " + b"9" * 50_000,
        b"a0: &a0 {x: 1}\n" + b"".join(
            b"a%d: &a%d {<<: [*a%d, *a%d], y%d: 1}\n" % (i, i, i - 1, i - 1, i)
            for i in range(1, 40)
        ),
    ],
)  # fmt: skip
def test_strange_yaml_is_one_line(tmp_path, content):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"a": ' * 100_000, b"1" * 10_000]
)
def test_strange_json_is_one_line(tmp_path, content):
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_json(tmp_path / "status.json")
    assert "\n" not in str(caught.value)
    assert read_status(tmp_path) == {}
