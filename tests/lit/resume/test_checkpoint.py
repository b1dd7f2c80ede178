"""Checkpoint files: whole or absent, verified, and nothing but data."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qat.errors import CheckpointError
from qat.lit.resume.checkpoint_io import (
    SafeCheckpointIO,
    checkpoint_name,
    checkpoints_by_step,
    last_good,
    load,
    save,
    verify,
)
from qat.storage.checkpoint import save_deflated


def content(step=0):
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "state_dict": {"weight": torch.randn(64, 64, generator=generator)},
        "plain": {"list": [1, 2.5, "three", None, True]},
    }


@pytest.fixture
def three(tmp_path):
    for step in (10, 20, 100):
        save(content(step), tmp_path / checkpoint_name(step))
    return tmp_path


def same(left, right):
    weights = [each["state_dict"]["weight"] for each in (left, right)]
    return torch.equal(*weights) and left["plain"] == right["plain"]


def test_round_trip_also_through_plain_torch_load(tmp_path):
    path = tmp_path / "new" / "step=00000001.ckpt"
    save(content(), path)
    verify(path)
    assert same(load(path), content())
    assert same(torch.load(path), content())
    assert same(torch.load(path, mmap=True), content())
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_deflated_file_is_smaller_and_holds_the_same(tmp_path, threads):
    """Large enough that the hash is taken beside the writing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weights = {"w": torch.randn(600, 600), "v": torch.randn(3), "tied": torch.zeros(0)}
        plain, small = tmp_path / "plain.ckpt", tmp_path / "small.ckpt"
        save({"state_dict": weights, "step": 3}, plain)
        save_deflated({"state_dict": weights, "step": 3}, small)
    finally:
        torch.set_num_threads(before)
    assert small.stat().st_size < 0.95 * plain.stat().st_size
    assert zipfile.ZipFile(small).testzip() is None
    for read in (load, torch.load):
        content = read(small)
        assert content["step"] == 3
        assert all(torch.equal(content["state_dict"][key], weights[key]) for key in weights)


def test_the_door_of_lightning(tmp_path):
    door, path = SafeCheckpointIO(), tmp_path / "a.ckpt"
    door.save_checkpoint(content(), str(path))
    verify(path)
    assert same(door.load_checkpoint(str(path), weights_only=False), content())
    door.remove_checkpoint(path)
    assert not path.exists()


def test_names_sort_like_steps(three):
    assert list(checkpoints_by_step(three)) == [10, 20, 100]
    (three / ".step=00000200.ckpt.0123456789abcdef.part").write_bytes(b"half")
    (three / "notes.txt").write_text("mine")
    assert last_good(three) == three / checkpoint_name(100)


def flip(data, position):
    return data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


def weight_position(data):
    return data.index(content(100)["state_dict"]["weight"].numpy().tobytes()[:64]) + 40


DAMAGE = {
    "truncated": (lambda data: data[: len(data) // 2], "cut short"),
    "one byte short": (lambda data: data[:-1], "cut short"),
    "empty": (lambda data: b"", "is empty"),
    "garbage": (lambda data: os.urandom(len(data)), "cut short or was not written by qat"),
    "bit in a weight": (lambda data: flip(data, weight_position(data)), "sha256"),
    "bit in the header": (lambda data: flip(data, 6), "sha256"),
    "bit in the trailer": (lambda data: flip(data, len(data) - 3), "sha256"),
    "no trailer": (lambda data: data[:-40], "cut short or was not written by qat"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_is_used(three, kind, caplog):
    spoil, reason = DAMAGE[kind]
    newest = three / checkpoint_name(100)
    newest.write_bytes(spoil(newest.read_bytes()))
    with pytest.raises(CheckpointError, match=reason):
        load(newest)
    assert last_good(three) == three / checkpoint_name(20)
    (line,) = caplog.messages
    assert newest.name in line
    assert reason in line
    assert f"using {three / checkpoint_name(20)}" in line
    assert "\n" not in line


def test_a_flipped_weight_bit_would_load_in_silence_without_us(three):
    newest = three / checkpoint_name(100)
    newest.write_bytes(flip(newest.read_bytes(), weight_position(newest.read_bytes())))
    assert not same(torch.load(newest), content(100))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_flipped_bit_or_cut_is_found(tmp_path, data):
    path = tmp_path / "a.ckpt"
    save({"x": torch.arange(4)}, path)
    good = path.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    is_cut = data.draw(st.booleans())
    mask = data.draw(st.integers(1, 255))
    bad = good[:position] + (
        b"" if is_cut else bytes([good[position] ^ mask]) + good[position + 1 :]
    )
    path.write_bytes(bad)
    with pytest.raises(CheckpointError):
        verify(path)


def test_all_damaged_is_an_error_and_none_at_all_is_none(three, tmp_path):
    for path in checkpoints_by_step(three).values():
        path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"every checkpoint .*100.*20.*10"):
        last_good(three)
    empty = tmp_path / "empty"
    assert last_good(empty) is None
    empty.mkdir()
    assert last_good(empty) is None


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    target = tmp_path / "executed"
    path = tmp_path / "a.ckpt"
    save({"state_dict": {}, "hyper_parameters": Attack(target)}, path)
    with pytest.raises(CheckpointError, match="tensors and plain values"):
        load(path)
    with pytest.raises(CheckpointError, match="tensors and plain values"):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)
    path.write_bytes(pickle.dumps(Attack(target)))
    with pytest.raises(CheckpointError, match="not written by qat"):
        load(path)
    assert not target.exists()


@pytest.mark.parametrize("path", ["http://host/a.ckpt", "https://host/a.ckpt", "s3://bucket/a"])
def test_urls_are_refused(path):
    with pytest.raises(CheckpointError, match="is a URL"):
        SafeCheckpointIO().load_checkpoint(path)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt is missing"):
        load(tmp_path / "nowhere.ckpt")
