"""What Quantize refuses, in one sentence, and what it serves although it looks odd."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from loop.modules import Classifier, Gan, Manual, classifier_net
from loop.test_callback import fit, trainer
from torch import nn
from torch.nn import functional as F

from qat.errors import QatError, SpecError
from qat.loop.callback import Quantize
from support.digits_run import module as digits_module

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*log_every_n_steps", "ignore:.*swa"
)


class Lbfgs(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class NoOptimizer(Classifier):
    def configure_optimizers(self):
        return None


class Part(Classifier):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), lr=0.1)


class Twice(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


class PastTheRule(Manual):
    def configure_optimizers(self):
        self.own = torch.optim.SGD(self.parameters(), lr=0.1)
        return self.own

    def training_step(self, batch, batch_idx):
        F.cross_entropy(self(batch[0]), batch[1]).backward()
        self.own.step()


@pytest.mark.parametrize(
    ("module", "quantize", "options", "said"),
    [
        (Classifier, {"warm_start_epochs": 3}, {}, "9 steps and the fit has 9"),
        (Classifier, {"module": "nett"}, {}, "'nett'.*it has net"),
        (Gan, {}, {}, r"generator, discriminator.*Quantize\(module="),
        (Classifier, {}, {"max_epochs": -1}, r"Quantize\(steps="),
        (Classifier, {}, {"precision": "bf16-true"}, "float32 and use mixed precision"),
        (Lbfgs, {}, {}, "LBFGS.step needs a closure"),
        (NoOptimizer, {}, {}, "no optimizer holds"),
        (Part, {}, {}, "4.weight is held by no optimizer"),
        (Twice, {}, {}, "0.0.weight is held by 2 optimizers"),
        (PastTheRule, {}, {}, r"self.optimizers\(\)"),
        (digits_module, {}, {}, "LitClassifier quantizes by itself"),
        (Classifier, {"example": lambda batch: None}, {}, "without a tensor"),
        (Classifier, {"example": torch.zeros(0, 3, 8, 8)}, {}, "example"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_in_a_sentence(module, quantize, options, said, tmp_path):
    callback = Quantize("bcgd_w1a4", **quantize)
    chief, made = trainer(tmp_path, callback, enable_checkpointing=False, **options), module()
    run = partial(chief.fit, made, Classifier.data())
    with pytest.raises(QatError, match=said) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_callbacks_that_leave_the_grid_and_a_second_module_are_refused(tmp_path):
    averaging = StochasticWeightAveraging(swa_lrs=0.1)
    with pytest.raises(QatError, match="StochasticWeightAveraging averages"):
        fit(trainer(tmp_path, Quantize("bcgd_w1a4"), averaging), Classifier())
    callback = Quantize("bcgd_w1a4")
    fit(trainer(tmp_path, callback, enable_checkpointing=False, max_epochs=1), Classifier())
    with pytest.raises(QatError, match="has quantized another module"):
        fit(trainer(tmp_path, callback, enable_checkpointing=False), Classifier())


def test_options_out_of_range():
    for options in ({"warm_start_epochs": -1}, {"steps": 0}, {"stats_every_n_steps": -1}):
        with pytest.raises(SpecError, match=next(iter(options))):
            Quantize("bcgd_w1a4", **options)
    with pytest.raises(SpecError, match="bcgd_w1a4"):
        Quantize("w1a4")


def test_two_callbacks_serve_two_networks_of_a_module(tmp_path):
    first = Quantize("bcgd_w1a4", module="discriminator")
    second = Quantize("bcgd_w2a4", module="generator", example=torch.randn(8, 5))
    saved = ModelCheckpoint(tmp_path, save_last=True)
    gan = Gan()
    fit(trainer(tmp_path, first, second, saved), gan)
    assert len(gan.discriminator[0][0].weight.unique()) == 2
    assert len(gan.generator[0].weight.unique()) == 3
    keys = Gan.load_from_checkpoint(tmp_path / "last.ckpt").state_dict().keys()
    assert not any(key.endswith("step") for key in keys)
    # two that share an optimizer do not
    pair = Quantize("bcgd_w1a4", module="net.0"), Quantize("bcgd_w1a4", module="net.4",
                                                           example=torch.randn(4, 8))  # fmt: skip
    with pytest.raises(QatError, match="follows a rule already"):
        fit(trainer(tmp_path, *pair, enable_checkpointing=False), Classifier())


class Compiled(Classifier):
    def setup(self, stage):
        self.net = torch.compile(self.net, backend="eager")


class MadeInSetup(Classifier):
    def __init__(self):
        super().__init__()
        self.net = None

    def setup(self, stage):
        self.net = self.net or classifier_net()


@pytest.mark.parametrize("kind", [Compiled, MadeInSetup])
def test_networks_that_setup_makes_or_compiles(kind, tmp_path):
    module, callback = kind(), Quantize("bcgd_w1a4")
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(trainer(tmp_path, callback, saved), module)
    assert all(
        len(layer.weight.unique()) == 2
        for layer in module.net.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    )
    keys = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"].keys()
    assert not any(key.endswith("step") for key in keys)
    again, other = kind(), Quantize("bcgd_w1a4")
    chief = trainer(tmp_path, other, max_epochs=4, enable_checkpointing=False)
    fit(chief, again, ckpt_path=tmp_path / "last.ckpt")
    assert other.quantization.phases.optimizers[0].completed_steps == 12


def test_a_checkpoint_without_the_callback_is_not_gone_on_from(tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(trainer(tmp_path, saved), Classifier())
    for ask in ("fit", "test"):
        chief = trainer(tmp_path, Quantize("bcgd_w1a4"), max_epochs=4, enable_checkpointing=False)
        with pytest.raises(QatError, match="saved without it"):
            getattr(chief, ask)(Classifier(), Classifier.data(), ckpt_path=tmp_path / "last.ckpt")


class SeenLevels(L.Callback):
    """Numbers of levels in every batch of an evaluation."""

    def __init__(self):
        self.levels = set()

    def look(self, trainer, module, *_):
        self.levels.add(len(module.net[4].weight.unique()))

    on_test_batch_start = on_validation_batch_start = on_predict_batch_start = look


@pytest.mark.parametrize("ask", ["validate", "test", "predict"])
def test_an_evaluation_of_a_checkpoint_sees_what_validation_saw(ask, tmp_path):
    torch.manual_seed(0)
    module, callback = Classifier(), Quantize("bcgd_w1a4")
    saved = ModelCheckpoint(tmp_path, save_last=True)
    chief = trainer(tmp_path, callback, saved)
    fit(chief, module)
    wanted = chief.callback_metrics["val_loss"].clone()
    with callback.quantization.evaluating() as net, torch.no_grad():
        logits = torch.cat([net(batch[0]) for batch in Classifier.data()])
    torch.manual_seed(1)
    seen, other = SeenLevels(), Quantize("bcgd_w1a4")
    judge = trainer(tmp_path, other, seen)
    out = getattr(judge, ask)(Classifier(), Classifier.data(), ckpt_path=tmp_path / "last.ckpt")
    assert seen.levels == {2}
    assert other.quantization.is_quantized
    if ask == "predict":
        assert torch.equal(torch.cat(out), logits)
    else:
        assert judge.callback_metrics["val_loss"] == wanted
    assert other.audit().bits == callback.found.bits


def test_a_further_fit_begins_at_the_latent_weights_of_the_last(tmp_path):
    module, callback = Classifier(), Quantize("bcgd_w1a4", warm_start_epochs=1)
    fit(trainer(tmp_path, callback, enable_checkpointing=False), module)
    latent = [w.clone() for w, _ in callback.quantization.phases.optimizers[0].latent_pairs()]

    class First(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0 and trainer.current_epoch == 0:
                self.weights = [p.detach().clone() for p in module.parameters() if p.ndim > 1]
                self.is_quantized = callback.quantization.is_quantized

    first = First()
    fit(trainer(tmp_path, callback, first, enable_checkpointing=False), module)
    assert not first.is_quantized
    assert all(torch.equal(a, b) for a, b in zip(first.weights, latent, strict=True))
    assert callback.quantization.is_quantized
