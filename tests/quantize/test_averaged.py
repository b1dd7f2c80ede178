"""Averaged weights: the plain formula, on the grids wherever they are seen, exactly resumed."""

import copy
import io

import lightning as L
import pytest
import torch
from loop.modules import Classifier, loader
from torch import nn

from qat.errors import CheckpointError, SpecError
from qat.loop.callback import Quantize
from qat.loop.quantization import Quantization
from qat.quantize.averaged import AveragedWeights
from qat.quantize.plan import weight_projections
from qat.train.weights import network_state, restore
from support.digits_run import fit, module
from support.products import mostly_slow

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
DECAY = 0.6
IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4
RULES = mostly_slow(["bcgd_w1a4", "binary_relax_w2a4", "lsq_w2a4", "dorefa_w1a4"], day={0, 2})


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(54, 4),
    )  # fmt: skip


def begun(name, *, warm_steps=2, steps=9, **options):
    training = Quantization(network(), name, example=IMAGES, **options)
    base = torch.optim.Adam(training.net.parameters(), lr=0.02)
    return training, training.wrap(base, steps=steps, warm_steps=warm_steps)


def step(training, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(training.net(IMAGES), LABELS).backward()
    optimizer.step()


def values(training):
    """What is averaged, by name: latent weights and the rest, running statistics too."""
    state = training.net.state_dict() | training.phases.latent_entries(training.net)
    return {k: v.clone() for k, v in state.items() if v.is_floating_point()}


@pytest.mark.parametrize("name", RULES)
def test_the_average_is_that_of_the_formula(name):
    training, optimizer = begun(name, ema_decay=DECAY)
    plain, other = begun(name)
    expected, seen = None, []
    for number in range(9):
        step(training, optimizer)
        step(plain, other)
        now = values(training)
        if number == 1:  # the last float step: the quantized phase begins here
            expected = now
        elif number > 1:
            t = number - 2
            d = min(DECAY, (1 + t) / (10 + t))
            seen.append(d)
            expected = {k: d * a + (1 - d) * now[k] for k, a in expected.items()}
    assert seen[0] == 0.1
    found = training.phases.average.values
    assert training.phases.average.steps == 7
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], msg=key)
    frozen = {k for k, p in training.net.named_parameters() if not p.requires_grad}
    assert set(found) == set(expected) - frozen
    for key, value in values(plain).items():  # the training itself is as without an average
        assert torch.equal(values(training)[key], value), key


@pytest.mark.parametrize("name", RULES)
def test_what_is_judged_lies_on_the_grids_and_training_goes_on_untouched(name):
    training, optimizer = begun(name, ema_decay=DECAY)
    for _ in range(6):
        step(training, optimizer)
    before, shown_before = values(training), training.net.state_dict()
    shown_before = {k: v.clone() for k, v in shown_before.items()}
    projections = weight_projections(training.net, training.plan)
    average = {k: v.clone() for k, v in training.phases.average.values.items()}
    with training.evaluating() as net:
        for key, value in average.items():
            held = held_of(net, key)
            wanted = projections[held](value) if held in projections else value
            assert torch.equal(held, wanted), key
        answer = net(IMAGES)
        with training.evaluating():  # inside of itself
            assert torch.equal(net(IMAGES), answer)
        assert torch.equal(net(IMAGES), answer)
        for layer in (net[0], net[5]):
            bits = training.spec.weight.bits
            assert len(layer.weight.unique()) <= 2**bits
    assert all(torch.equal(training.net.state_dict()[k], v) for k, v in shown_before.items())
    assert all(torch.equal(values(training)[k], v) for k, v in before.items())
    found = training.audit()
    assert found.layers


def held_of(net, name):
    return dict(net.named_parameters()).get(name, dict(net.named_buffers()).get(name))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("at", [1, 4])
def test_a_loop_goes_on_bit_for_bit(name, at):
    whole, optimizer = begun(name, ema_decay=DECAY)
    file = io.BytesIO()
    for number in range(9):
        if number == at:
            state = whole.state_dict()
            torch.save(state, file)
        step(whole, optimizer)
    other, again = begun(name, ema_decay=DECAY)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(9 - at):
        step(other, again)
    for key, value in whole.phases.average.values.items():
        assert torch.equal(other.phases.average.values[key], value), key
    assert other.phases.average.steps == whole.phases.average.steps == 7
    judged = Quantization(network(), name, example=IMAGES, ema_decay=DECAY)
    judged.load_state_dict(whole.state_dict())  # without an optimizer: what was judged
    with whole.evaluating() as net, judged.evaluating() as loaded:
        assert torch.equal(net(IMAGES), loaded(IMAGES))


def test_a_run_selects_and_restores_what_it_judged(tmp_path):
    class Saving(L.Callback):
        def on_train_batch_end(self, trainer, lit, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    def averaged():
        lit = module("bcgd", warm=1)
        lit.phases.average = AveragedWeights(lit.net, DECAY)
        return lit

    whole, resumed = averaged(), averaged()
    fit(whole, Saving(), epochs=3)
    trainer, data = fit(resumed, epochs=3, ckpt_path=tmp_path / "x.ckpt")
    for key, value in whole.phases.average.values.items():
        assert torch.equal(value, resumed.phases.average.values[key]), key
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    file = torch.load(tmp_path / "x.ckpt", weights_only=True)
    average = file["qat"]["ema"]["values"]
    assert all(torch.equal(network_state(file)[k], v) for k, v in average.items())
    w, other = average["8.weight"], averaged()
    hard = torch.where(w >= 0, 1.0, -1.0) * w.abs().mean()
    other.net[8].register_forward_pre_hook(lambda m, _: seen.append(torch.equal(m.weight, hard)))
    seen = []
    trainer.test(other, data, ckpt_path=tmp_path / "x.ckpt", weights_only=True, verbose=False)
    assert seen == [True, True]
    another = averaged()
    restore(another.net, another.plan, file)
    assert torch.equal(another.net[8].weight, hard)


def test_under_the_callback_and_in_its_checkpoints(tmp_path):
    def fitted(*callbacks, ckpt_path=None, epochs=3):
        quantize = Quantize("lsq_w2a4", ema_decay=DECAY, warm_start_epochs=1)
        torch.manual_seed(0)
        lit = Classifier()
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False,
            callbacks=[quantize, *callbacks],
        )  # fmt: skip
        trainer.fit(lit, loader(), loader(), ckpt_path=ckpt_path, weights_only=True)
        return quantize, trainer, lit

    class Saving(L.Callback):
        def on_train_epoch_end(self, trainer, lit):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    whole, trainer, lit = fitted(Saving())
    average = whole.quantization.phases.average
    assert average.has_begun
    again, _, _ = fitted(ckpt_path=tmp_path / "1.ckpt")
    for key, value in average.values.items():
        assert torch.equal(value, again.quantization.phases.average.values[key]), key
    with whole.quantization.evaluating() as net:
        judged = net(IMAGES)
    file = tmp_path / "2.ckpt"
    trainer.test(lit, loader(), ckpt_path=file, verbose=False, weights_only=True)
    with whole.quantization.evaluating() as net:
        assert torch.equal(net(IMAGES), judged)


def test_tied_weights_have_one_average_under_all_their_names():
    net = network()
    net.append(nn.Linear(4, 4))
    net.append(nn.Linear(4, 4))
    net[7].weight = net[6].weight
    training = Quantization(net, "bcgd_w1a32", example=IMAGES, ema_decay=DECAY)
    optimizer = training.wrap(torch.optim.SGD(net.named_parameters(), lr=0.1))
    for _ in range(3):
        step(training, optimizer)
    average = training.phases.average
    values = average.state_dict()["values"]
    assert torch.equal(values["6.weight"], values["7.weight"])
    assert not torch.equal(values["6.weight"], training.phases.latent_entries(net)["6.weight"])
    checkpoint = {
        "state_dict": {f"net.{k}": v for k, v in net.state_dict().items()},
        "optimizer_states": [optimizer.state_dict()],
        "qat": {"ema": average.state_dict()},
    }
    other = Quantization(copy.deepcopy(net), "bcgd_w1a32", example=IMAGES)
    restore(other.net, other.plan, checkpoint, weights="latent")
    assert torch.equal(other.net[7].weight, values["6.weight"])
    again = AveragedWeights(net, DECAY)
    again.load_state_dict(average.state_dict())
    assert again.values.keys() == average.values.keys()


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(SpecError, match=r"ema\.decay"):
        AveragedWeights(network(), decay)


def test_an_average_of_another_network_is_refused():
    average = AveragedWeights(network(), DECAY)
    with pytest.raises(CheckpointError, match="another network"):
        average.load_state_dict({"steps": 1, "values": {"0.weight": torch.zeros(1)}})
