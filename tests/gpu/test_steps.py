"""Whole training steps on a GPU, of every option and in every precision."""

import contextlib
import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from qat import set_runtime
from qat.lit.classifier import LitClassifier
from qat.names import Backward, MemoryFormat, Saved
from qat.optim.groups import parameter_groups
from qat.quantize.prepare import prepare
from qat.spec.quant import ActivationSpec, QuantSpec, RuleSpec, WeightSpec
from qat.spec.run import SchedulerSpec, TrainingSpec
from support.elsewhere import tensors
from support.options import CLASSES, SHAPE, network, quantizations

pytestmark = pytest.mark.gpu

SGD = partial(torch.optim.SGD, momentum=0.9)


class Run:
    """A network, its optimizer and its phases on a device; batches are the same everywhere."""

    def __init__(self, spec, device, *, base=SGD, dtype=torch.float32, make=network, shape=SHAPE):
        torch.manual_seed(0)
        self.device, self.dtype, self.shape = device, dtype, shape
        net = prepare(make(), spec, example=torch.zeros(2, *shape))
        self.lit = LitClassifier(
            net, spec, optimizer=base, scheduler=SchedulerSpec(), training=TrainingSpec(),
            classes=CLASSES, ema_decay=0.9,
        ).to(device=device, dtype=dtype)  # fmt: skip
        groups = parameter_groups(
            self.lit.learned_parameters(), lr=0.02, weight_decay=1e-4,
            step_rate=spec.activation.step_rate,
        )  # fmt: skip
        (self.optimizer,) = self.lit.phases.wrap([base(groups)], [8], [0])

    def batch(self, number, count=16):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(count, *self.shape, generator=generator).to(self.device, self.dtype)
        labels = torch.randint(0, CLASSES, (count,), generator=generator).to(self.device)
        return images, labels

    def step(self, number, *, autocast=contextlib.nullcontext, scaler=None):
        """The loss before a step, as a tensor of the device."""
        self.lit.phases.advance(lambda: [self.batch(number)[0]])
        self.optimizer.zero_grad()
        with autocast():
            loss = self.lit.objective(self.batch(number))["loss"]
        if scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(self.optimizer)
            scaler.update()
        return loss.detach()

    def train(self, start, stop, **options):
        return [self.step(number, **options) for number in range(start, stop)]

    def held(self):
        """Everything that a step has written."""
        states = [self.lit.state_dict(), self.optimizer.state_dict(), self.lit.phases.state_dict()]
        return list(tensors(states))


def same(one, other):
    left, right = one.held(), other.held()
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize("label", quantizations())
def test_every_option_trains_as_on_a_cpu(label, device):
    """In float64, where a GPU rounds convolutions as finely as a CPU; grids stay float32."""
    spec = quantizations()[label]
    runs = [Run(spec, d, dtype=torch.float64) for d in (torch.device("cpu"), device)]
    losses = [torch.stack(run.train(0, 3)).cpu() for run in runs]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-3)
    assert {t.device for t in runs[1].held()} == {device}
    here, there = (torch.cat([t.double().flatten().cpu() for t in r.held()]) for r in runs)
    # a code may take its neighbour where rounding decides; nearly all numbers know nothing of it
    assert ((here - there).abs() <= 1e-4 + 1e-3 * here.abs()).double().mean() > 0.98


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("spec", [QuantSpec(), QuantSpec(
    rule=RuleSpec(name="float_only"), weight=WeightSpec(method="lsq", bits=4),
    activation=ActivationSpec(kind="lsq"),
)], ids=["bcgd", "lsq"])  # fmt: skip
@pytest.mark.parametrize("precision", PRECISIONS)
def test_autocast_keeps_weights_scales_and_latents_in_float32(spec, precision, device):
    run = Run(spec, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    autocast = partial(torch.autocast, device.type, PRECISIONS[precision])
    losses = run.train(0, 4, autocast=autocast, scaler=scaler)
    assert all(loss.isfinite() for loss in losses)
    assert all(t.dtype != PRECISIONS[precision] for t in run.held())
    assert run.optimizer.completed_steps == 4


def test_a_scaler_leaves_out_a_step_that_is_not_finite(device):
    run, scaler = Run(QuantSpec(), device), torch.amp.GradScaler(device.type, init_scale=1024.0)
    run.step(0)
    before = [t.clone() for t in run.held()]
    run.optimizer.zero_grad()
    scaler.scale(run.lit.criterion(run.lit.net.eval()(run.batch(1)[0]), run.batch(1)[1])).backward()
    next(p for p in run.lit.parameters() if p.grad is not None).grad.fill_(torch.inf)
    scaler.step(run.optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(map(torch.equal, before, run.held()))


@pytest.mark.parametrize(
    "options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str
)
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_forms_of_a_base_optimizer_agree(base, options, device):
    runs = [
        Run(QuantSpec(), device, base=partial(base, **o)) for o in ({"foreach": False}, options)
    ]
    losses = [torch.stack(run.train(0, 3)) for run in runs]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_network_trains(dtype, device):
    plain, compiled = Run(QuantSpec(), device), Run(QuantSpec(), device)
    compiled.lit.net.compile(fullgraph=True)
    autocast = partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)
    losses = [torch.stack(run.train(0, 3, autocast=autocast)) for run in (plain, compiled)]
    torch.testing.assert_close(losses[1], losses[0], rtol=5e-2, atol=1e-2)


@pytest.fixture
def deterministic():
    """As trainer.deterministic=true."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("label", quantizations())
def test_every_option_is_deterministic(label, device, deterministic):
    """No operation of a step refuses, and the same run again has the same bits."""
    runs = [Run(quantizations()[label], device) for _ in range(2)]
    for run in runs:
        run.train(0, 2)
    assert same(*runs)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_resume_is_bitwise(step, device, deterministic, tmp_path):
    whole, first, second = (Run(QuantSpec(), device) for _ in range(3))
    whole.train(0, 4)
    first.train(0, step)
    state = {
        "lit": first.lit.state_dict(), "optimizer": first.optimizer.state_dict(),
        "phases": first.lit.phases.state_dict(),
    }  # fmt: skip
    torch.save(state, tmp_path / "state.pt")
    # as a run reads it: on the CPU first
    state = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    second.lit.load_state_dict(state["lit"])
    second.lit.phases.load_state_dict(state["phases"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.train(step, 4)
    assert same(whole, second)


@pytest.mark.parametrize("options", [
    *({"saved": saved} for saved in Saved.__args__),
    *({"backward": backward} for backward in Backward.__args__),
    *({"memory_format": layout} for layout in MemoryFormat.__args__),
    {"kernels": "fused"},
], ids=str)  # fmt: skip
def test_every_runtime_trains_to_nearly_the_same(options, device):
    plain, other = Run(QuantSpec(), device), Run(QuantSpec(), device)
    losses = torch.stack(plain.train(0, 3))
    with set_runtime(**options):
        found = torch.stack(other.train(0, 3))
    torch.testing.assert_close(found, losses, rtol=5e-2, atol=1e-2)
    if "saved" in options:
        assert same(plain, other)


def test_memory_does_not_grow(cuda):
    run = Run(QuantSpec(), cuda)
    run.train(0, 3)
    before = torch.cuda.memory_allocated()
    run.train(3, 53)
    assert torch.cuda.memory_allocated() <= before


def wide():
    blocks = [nn.Sequential(nn.Conv2d(n, 32, 3, padding=1), nn.ReLU()) for n in (3, 32, 32)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def test_codes_take_less_memory_than_floats(cuda):
    """`runtime.saved=codes`: a byte of each quantized number in place of four."""
    peaks = {}
    for saved in Saved.__args__:
        run = Run(QuantSpec(), cuda, make=wide, shape=(3, 64, 64))
        with set_runtime(saved=saved):
            run.train(0, 2)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            run.step(2)
            peaks[saved] = torch.cuda.max_memory_allocated() - before
    assert peaks["codes"] < peaks["floats"]


def test_a_group_of_one_process_averages_gradients(device, tmp_path):
    """By NCCL on a GPU, by gloo on a CPU: a group of one changes nothing."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plain, shared = Run(QuantSpec(), device), Run(QuantSpec(), device)
        number = torch.ones(3, device=device)
        dist.all_reduce(number)
        assert torch.equal(number, torch.ones_like(number))
        net = nn.parallel.DistributedDataParallel(shared.lit.net, find_unused_parameters=True)
        shared.lit.phases.advance(lambda: [shared.batch(0)[0]])
        for number in range(3):
            plain.step(number)
            images, labels = shared.batch(number)
            shared.optimizer.zero_grad()
            shared.lit.criterion(net(images), labels).backward()
            shared.optimizer.step()
        for one, other in zip(plain.held(), shared.held(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    finally:
        dist.destroy_process_group()


def test_what_is_trained_opens_on_a_cpu(device):
    """The weights of a device, moved: the same answers but for the rounding of sums."""
    run = Run(QuantSpec(), device, dtype=torch.float64)
    run.train(0, 3)
    images = run.batch(9)[0]
    with torch.no_grad(), run.lit.phases.judged_weights():
        net = run.lit.net.eval()
        there = net(images).cpu()
        here = copy.deepcopy(net).cpu()(images.cpu())
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)
