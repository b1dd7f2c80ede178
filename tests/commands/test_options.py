"""Options that reach into other libraries, each through the real command for a few steps."""

import json

import pytest

from support.real_run import train

# options that have nothing to do with each other share a run
OPTIONS = {
    "wandb offline, bf16, accumulated": [
        "logger=wandb", "trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2",
    ],
    "adamw, step, statistics anew, power of two": [
        "optimizer=adamw", "scheduler=step", "training.bn_reestimate=2",
        "quant.weight.grid=power_of_two", "quant.weight.bits=4",
    ],
    "relaxed, clipped, per channel, override": [
        "quant=binary_relax_w4a4", "trainer.gradient_clip_val=1.0", "scheduler=constant",
        "quant.weight.granularity=channel", "quant.input_bits=8",
        "quant.overrides=[{match: conv2, weight: {bits: 8}}]", "quant.ends.last=float",
    ],
    "compiled": ["training.compile=true"],
}  # fmt: skip
AT_NIGHT = (
    "adamw, step, statistics anew, power of two",
    *("wandb offline, bf16, accumulated", "compiled"),  # wandb's service; a C++ compiler
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in AT_NIGHT else ()) for n in OPTIONS],
)
def test_a_few_steps(name, tmp_path):
    folder = tmp_path / "run"
    words = ["model=lenet5", "debug=quick", "training.threads=1", f"hydra.run.dir={folder}"]
    train(*words, *OPTIONS[name], cwd=tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    bits = {row["name"]: row["weight_bits"] for row in summary["audit"]}
    if "override" in name:
        assert bits == {"conv1": 4, "conv2": 8, "fc1": 4, "fc2": 4, "fc3": 32}
    else:
        assert summary["quantized_share"] == 1
        assert set(bits.values()) == {4 if "power of two" in name else 1}
    if "wandb" in name:
        assert list(folder.glob("wandb/offline-run-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "extra"),
    [
        pytest.param("regnetx_002", [], marks=pytest.mark.slow),
        pytest.param("mobilenetv3_small_050", [], marks=pytest.mark.slow),
        ("vit_tiny_patch16_224", ["+model.kwargs.patch_size=2", "+model.kwargs.depth=2"]),
    ],
)
def test_timm_families_are_quantized_whole(model, extra, tmp_path):
    folder = tmp_path / "run"
    words = ["model=timm", f"model.name={model}", "debug=quick", "training.threads=1", *extra]
    train(*words, f"hydra.run.dir={folder}", cwd=tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["quantized_share"] >= 0.95
    for row in summary["audit"]:
        assert row["levels"] == (2 if row["weights"] else 0)
        assert row["source"] == "quantized" or row["input_reason"]
