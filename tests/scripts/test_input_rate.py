"""The files that the rate of the input is measured on, and a small run of the script."""

import input_rate
import numpy as np
import pytest
from PIL import Image

from support import ROOT
from support.real_run import train


def test_files_are_as_large_as_those_of_imagenet(tmp_path):
    assert 95e3 < input_rate.write_photographs(tmp_path, 4) < 125e3
    paths = sorted(tmp_path.glob("*/*.jpg"))
    assert len({path.read_bytes() for path in paths}) == 4
    for path in paths:
        with Image.open(path) as image:
            assert (image.size, image.mode, image.format) == ((500, 375), "RGB", "JPEG")


def test_amplitudes_fall_as_one_over_the_frequency():
    rng = np.random.default_rng(1)
    grey = [
        np.asarray(input_rate.photograph(rng, (256, 256)).convert("L"), float) for _ in range(8)
    ]
    power = np.mean([np.abs(np.fft.rfft(image, axis=1)) ** 2 for image in grey], axis=(0, 1))
    low, high = power[4:8].mean(), power[32:64].mean()
    # a cut through the plane adds up 1 / f^2 over the other direction: 1 / f
    assert low / high == pytest.approx(8, rel=0.35)


def test_a_small_run(tmp_path):
    path = tmp_path / "rate.yaml"
    said = train(
        "images=20", "rounds=1", "steps=0", "workers=[0]", "batch=8", f"record={path}",
        cwd=tmp_path, script=ROOT / "scripts/input_rate.py",
    )  # fmt: skip
    assert "read and decode" in said
    assert "with mixup=0.2" in path.read_text()
