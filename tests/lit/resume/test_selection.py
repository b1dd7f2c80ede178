"""The selected epoch, and the checkpoints that stay."""

from hypothesis import given
from hypothesis import strategies as st

from qat.lit.resume.selection import Selection, keep_only
from qat.storage.checkpoint import (
    checkpoint_name,
    checkpoints_by_step,
)


def offers(*epochs, mode="max"):
    selection = Selection(mode)
    for step, (score, selectable) in enumerate(epochs):
        selection.offer(score, step=step, selectable=selectable)
    return selection.best and selection.best["step"]


def test_selection_table():
    nan = float("nan")
    assert offers() is None
    assert offers((0.5, True), (0.7, True), (0.6, True)) == 1
    assert offers((0.5, True), (0.4, True), mode="min") == 1
    assert offers((0.5, True), (0.5, True)) == 0
    # float epochs score higher and may not win
    assert offers((0.9, False), (0.95, False)) is None
    assert offers((0.9, False), (0.6, True), (0.95, False)) == 1
    assert offers((0.9, False), (0.6, True), (0.7, True)) == 2
    assert offers((nan, True)) is None
    assert offers((0.1, True), (nan, True)) == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1), st.integers(0, 10))
def test_selection_equals_brute_force_and_survives_a_resume(epochs, stop):
    first = Selection()
    for step, (score, selectable) in enumerate(epochs[:stop]):
        first.offer(score, step=step, selectable=selectable)
    resumed = Selection()
    resumed.load_state_dict(first.state_dict())
    for step, (score, selectable) in list(enumerate(epochs))[stop:]:
        resumed.offer(score, step=step, selectable=selectable)
    selectable = [i for i, (_, counts) in enumerate(epochs) if counts]
    if not selectable:
        assert resumed.best is None
        return
    best = max(selectable, key=lambda i: (epochs[i][0], -i))
    assert resumed.best["step"] == best
    assert resumed.best["path"] == f"best/step={best:08d}.ckpt"


def test_keep_only_touches_checkpoints_alone(tmp_path):
    for step in (1, 2, 30):
        (tmp_path / checkpoint_name(step)).write_bytes(b"")
    (tmp_path / "step=2.txt").write_text("mine")
    keep_only(tmp_path, [2, 7])
    assert list(checkpoints_by_step(tmp_path)) == [2]
    assert (tmp_path / "step=2.txt").exists()
    keep_only(tmp_path / "absent", [])
