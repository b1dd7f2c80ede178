"""The real command on a GPU: trained, killed, gone on with, opened on a CPU; on two GPUs."""

import subprocess
import sys

import pytest
import torch

from qat import load_trained
from qat.data.digits import Digits
from qat.data.loader import image_loader
from qat.spec.data import DataSpec
from support import ROOT, environment
from support.real_run import PLAIN, SAVING, SMALL, differences, kill_after, tensors, train

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def accelerator(device):
    return f"trainer.accelerator={'gpu' if device.type == 'cuda' else 'cpu'}"


@pytest.fixture(scope="module")
def whole(accelerator, tmp_path_factory):
    """A finished run; a process of its own, as CUDA does not survive a fork."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, accelerator)
    return folder


def run(folder, *arguments):
    words = (*SMALL, *PLAIN, SAVING, "trainer.deterministic=true", *arguments)
    return train(*words, f"hydra.run.dir={folder}", cwd=folder.parent, cold=True)


def test_the_same_command_ends_on_the_same_bits(whole, accelerator, tmp_path):
    run(tmp_path / "again", accelerator)
    assert differences(whole, tmp_path / "again") == []


def test_a_killed_run_ends_on_the_same_bits(whole, accelerator, tmp_path):
    words = (*SMALL, *PLAIN, SAVING, "trainer.deterministic=true", accelerator)
    kill_after(25, tmp_path / "run", *words, cwd=tmp_path, cold=True)
    train(f"resume={tmp_path / 'run'}", cwd=tmp_path, cold=True)
    assert differences(whole, tmp_path / "run") == []


def test_it_says_which_device_it_took(whole, device):
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    assert kind in (whole / "summary.json").read_text()


def test_it_opens_on_a_cpu_with_the_same_answers(whole, device):
    net, _ = load_trained(whole)
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here = net(images)
        there = net.to(device)(images.to(device)).cpu()
    # sums in another order may move a code by one
    assert (there.argmax(1) == here.argmax(1)).float().mean() >= 0.9


@pytest.mark.parametrize(
    ("kind", "said"),
    [("packed", "logits bit for bit the run's"), ("onnx", "0 of 359 predictions on test differ")],
)
def test_it_is_exported(kind, said, whole):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    words = (f"run={whole}", f"format={kind}")
    script = ROOT / "scripts" / "export.py"
    assert said in train(*words, cwd=whole.parent, script=script, cold=True)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(precision, accelerator, tmp_path):
    if precision == "16-mixed" and accelerator.endswith("cpu"):
        pytest.skip("Lightning trains in float16 on GPUs alone")
    more = ("trainer.max_epochs=2", "training.non_finite=skip", f"trainer.precision={precision}")
    run(tmp_path / "run", accelerator, *more)
    assert all(t.isfinite().all() for t in tensors(tmp_path / "run").values())


@pytest.mark.parametrize(
    "options",
    [
        ("+optimizer.fused=true",),
        ("training.compile=true",),
        ("ema.decay=0.9", "trainer.gradient_clip_val=1"),
        ("distill=faqd", "distill.features.loss=projected_affinity", "model=resnet20"),
        ("data.workers=1", "trainer.accumulate_grad_batches=2"),
    ],
    ids=lambda words: words[0].partition("=")[0].lstrip("+"),
)
def test_options_of_a_run(options, accelerator, tmp_path):
    run(tmp_path / "run", accelerator, "trainer.max_epochs=2", *options)
    assert all(t.isfinite().all() for t in tensors(tmp_path / "run").values())


def test_batches_are_pinned_and_arrive(cuda):
    data = Digits(DataSpec(batch_size=32), seed=0)
    data.prepare()
    images, labels = next(iter(image_loader(data.parts.train, 1, seed=0, batch_size=32)))
    assert images.is_pinned()
    assert labels.is_pinned()
    assert torch.equal(images.to(cuda, non_blocking=True).cpu(), images)


def test_a_process_of_torchrun(accelerator, tmp_path):
    words = (*SMALL, *PLAIN, "trainer.max_epochs=2", accelerator, f"hydra.run.dir={tmp_path}/run")
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
    subprocess.run(
        [*launch, str(ROOT / "train.py"), *words], check=True, cwd=tmp_path, env=environment()
    )
    assert tensors(tmp_path / "run")


def test_two_processes_end_on_the_same_bits(accelerator, device, tmp_path):
    """Two GPUs average their gradients by NCCL; two processes of a CPU by gloo."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    more = (accelerator, "trainer.devices=2", "trainer.max_epochs=2")
    for name in ("one", "two"):
        run(tmp_path / name, *more)
    assert differences(tmp_path / "one", tmp_path / "two") == []
