"""Options that reach into other libraries, each through the real command for a few steps."""

import json
import subprocess
import sys

import pytest

from support import ROOT

OPTIONS = {
    "wandb offline": ["logger=wandb"],
    "bf16": ["trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2"],
    "adamw": ["optimizer=adamw", "scheduler=step", "training.bn_reestimate=2"],
    "relax": ["quant=binary_relax_w4a4", "trainer.gradient_clip_val=1.0", "scheduler=constant"],
    "power of two": ["quant.weight.grid=power_of_two", "quant.weight.bits=4"],
    "channel": ["quant=bcgd_w2a4", "quant.weight.granularity=channel", "quant.input_bits=8"],
    "override": ["quant.overrides=[{match: conv2, weight: {bits: 8}}]", "quant.ends.last=float"],
    "compiled": ["training.compile=true"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_few_steps(name, tmp_path):
    folder = tmp_path / "run"
    words = ["model=lenet5", "debug=quick", "training.threads=1", f"hydra.run.dir={folder}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words, *OPTIONS[name]],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    if name != "override":
        assert summary["quantized_share"] == 1
    else:
        bits = {row["name"]: row["weight_bits"] for row in summary["audit"]}
        assert bits == {"conv1": 1, "conv2": 8, "fc1": 1, "fc2": 1, "fc3": 32}
    if name == "wandb offline":
        assert list(folder.glob("wandb/offline-run-*"))


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("regnetx_002", []),
        ("mobilenetv3_small_050", []),
        ("vit_tiny_patch16_224", ["+model.kwargs.patch_size=2", "+model.kwargs.depth=2"]),
    ],
)
def test_timm_families_are_quantized_whole(model, extra, tmp_path):
    folder = tmp_path / "run"
    words = ["model=timm", f"model.name={model}", "debug=quick", "training.threads=1", *extra]
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words, f"hydra.run.dir={folder}"],
        cwd=tmp_path, capture_output=True, check=True, timeout=240,
    )  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["quantized_share"] >= 0.95
    for row in summary["audit"]:
        assert row["levels"] == 2
        assert row["source"] == "quantized" or row["input_reason"]
