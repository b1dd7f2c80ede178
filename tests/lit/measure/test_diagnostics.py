"""The callback: options, open windows, histograms."""

import pytest
import torch

from qat import SpecError
from qat.lit.measure.diagnostics import Diagnostics

# the weights of five steps, one a column: still, drifting, to and fro, there and back, late
CODES = torch.tensor(
    [
        [1, 0, -1, 0, 2],
        [1, 1, 1, 1, 2],
        [1, 2, -1, 1, 2],
        [1, 3, 1, 0, 2],
        [1, 4, -1, 0, 3],
    ],
    dtype=torch.int8,
)


@pytest.mark.parametrize(
    "options",
    [{"window": 1}, {"every_n_steps": 5}, {"images": 1}, {"directions": 0}, {"width": 0.0}],
)
def test_options_are_checked(options):
    key, value = next(iter(options.items()))
    with pytest.raises(SpecError, match=f"callbacks.diagnostics.{key}={value}"):
        Diagnostics(**options)


def test_an_open_window_survives_its_checkpoint(tmp_path):
    one = Diagnostics()
    one._codes, one._histogram = [CODES[0], CODES[1]], [0, 1, 2]
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = Diagnostics()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(torch.stack(other._codes), CODES[:2])
    assert other._histogram == [0, 1, 2]
    other.setup(None, None, "fit")  # a further fit, without a checkpoint
    assert other.state_dict() == {"codes": [], "histogram": []}


def test_histograms_of_all_windows_are_summed():
    diagnostics = Diagnostics(window=5, every_n_steps=5)
    for _ in range(2):
        diagnostics._codes = list(CODES)
        found = diagnostics._window_metrics()
    assert found["quant/settled"] == pytest.approx(1 / 5)
    assert diagnostics._histogram == [0, 2, 0, 4, 2, 2]
