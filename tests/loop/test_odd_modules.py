"""Modules, loaders and trainers that are not the usual ones."""

import copy
import csv
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
)
from loop.modules import Classifier, Gan, Manual, classifier_net, loader
from loop.test_callback import fit, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from qat.errors import CheckpointError, QatError, SpecError
from qat.loop.callback import Quantize
from qat.loop.quantization import Quantization
from qat.quantize.loading import quantizer_entries

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*log_every_n_steps", "ignore:.*LeafSpec"
)
QUIET = {"enable_checkpointing": False}


def levels(net):
    return {len(m.weight.unique()) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)}


class Student(L.LightningModule):
    """A student beside a frozen teacher, which its forward does not run."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = classifier_net(), classifier_net().requires_grad_(False)

    def forward(self, x):
        return self.student(x)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), self.teacher(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=0.1)


def test_a_teacher_beside_the_network_is_never_quantized_in_silence(tmp_path):
    with pytest.raises(QatError, match="forward does not run teacher"):
        trainer(tmp_path, Quantize("bcgd_w1a4"), **QUIET).fit(Student(), loader())
    module = Student()
    before = copy.deepcopy(module.teacher.state_dict())
    trainer(tmp_path, Quantize("bcgd_w1a4", module="student"), **QUIET).fit(module, loader())
    assert levels(module.student) == {2}
    after = module.teacher.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if "running" not in k
               and "num_batches" not in k)  # fmt: skip


class Order(L.Callback):
    """The labels in the order in which they are trained on, and random numbers on the way."""

    def __init__(self):
        self.labels, self.drawn = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.labels.append(batch[1].clone())
        self.drawn.append(torch.rand(()))


def loaders_of_all_kinds():
    data = loader().dataset
    own = partial(torch.Generator().manual_seed, 3)
    return {
        "shuffled": DataLoader(data, 16, shuffle=True),
        "own generator": DataLoader(data, 16, shuffle=True, generator=own()),
        "own sampler": DataLoader(data, 16, sampler=RandomSampler(data, generator=own())),
    }


@pytest.mark.parametrize("kind", loaders_of_all_kinds())
def test_a_fit_draws_the_numbers_of_one_without_the_callback(kind, tmp_path):
    seen = []
    for quantize in ((), (Quantize("bcgd_w1a4"),)):
        module = Classifier()
        torch.manual_seed(5)
        order = Order()
        chosen = loaders_of_all_kinds()[kind]
        trainer(tmp_path, order, *quantize, **QUIET).fit(module, chosen)
        seen.append((torch.cat(order.labels), torch.stack(order.drawn)))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


class ByKind(Classifier):
    """Parameters chosen by the kind of their layer, decay for weights alone."""

    def configure_optimizers(self):
        layers = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        weights = [m.parametrizations.weight.original if hasattr(m, "parametrizations")
                   else m.weight for m in layers]  # fmt: skip
        rest = [m.bias for m in layers if m.bias is not None]
        rest += [p for m in norms for p in m.parameters()]
        return torch.optim.AdamW(
            [{"params": weights, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
            lr=0.01,
        )


def learned(net):
    entries = set(quantizer_entries(net))
    return [p for name, p in net.named_parameters() if name in entries]


@pytest.mark.parametrize("spec", ["bcgd_w1a4", "lsq_w4a4"])
def test_steps_that_no_optimizer_was_given_learn_all_the_same(spec, tmp_path):
    callback, module = Quantize(spec), ByKind()
    trainer(tmp_path, callback, **QUIET, max_epochs=1).fit(module, loader())
    entries = learned(module.net)
    before = [p.detach().clone() for p in entries]
    trainer(tmp_path, callback, **QUIET, max_epochs=1).fit(module, loader())
    assert len(entries) >= 3
    assert all(not torch.equal(a, b) for a, b in zip(before, entries, strict=True))

    # in a plain loop, an optimizer that was made before the network was prepared
    net = classifier_net()
    base = torch.optim.SGD(net.parameters(), lr=0.5)
    images, labels = next(iter(loader()))
    training = Quantization(net, spec, example=images)
    optimizer = training.wrap(base)
    steps = learned(net)
    before = [p.detach().clone() for p in steps]
    F.cross_entropy(net(images), labels).backward()
    optimizer.step()
    assert len(steps) >= 3
    assert all(not torch.equal(a, b) for a, b in zip(before, steps, strict=True))


def test_in_graph_weights_have_to_be_held_by_one_optimizer(tmp_path):
    class Part(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[4].parameters(), lr=0.1)

    with pytest.raises(QatError, match=r"0\.0\.weight is held by no optimizer"):
        trainer(tmp_path, Quantize("lsq_w4a4"), **QUIET).fit(Part(), loader())


@pytest.mark.parametrize("now", ["bcgd_w2a8", "bcgd_w1a32", "binary_relax_w1a4", "lsq_w4a4"])
def test_a_state_of_other_options_is_refused(now, tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    callback = Quantize("bcgd_w1a4")
    fit(trainer(tmp_path, callback, saved), Classifier())
    for ask in ("fit", "test"):
        chief = trainer(tmp_path, Quantize(now), **QUIET, max_epochs=4)
        with pytest.raises(CheckpointError, match=r"other options \(quant\.") as caught:
            getattr(chief, ask)(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
        assert "\n" not in str(caught.value)
    images = next(iter(loader()))[0]
    plain = Quantization(classifier_net(), now, example=images)
    before = copy.deepcopy(plain.net.state_dict())
    with pytest.raises(CheckpointError, match="other options"):
        plain.load_state_dict(callback.quantization.state_dict())
    after = plain.net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_state_that_cannot_be_loaded_leaves_all_as_it_was():
    images, labels = next(iter(loader()))
    net = classifier_net()
    training = Quantization(net, "bcgd_w1a4", example=images)
    optimizer = training.wrap(torch.optim.Adam(net.parameters(), lr=0.01))
    F.cross_entropy(net(images), labels).backward()
    optimizer.step()
    state = copy.deepcopy(training.state_dict())
    state["optimizers"][0]["qat"]["version"] = 99
    state["network"]["0.0.weight"] += 1
    before = copy.deepcopy(net.state_dict())
    for wrong in (state, {"version": 1}, {}):
        with pytest.raises(CheckpointError, match="version"):
            training.load_state_dict(wrong)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_files_of_weights_alone_are_refused(tmp_path):
    saved = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(QatError, match="save_weights_only=True"):
        fit(trainer(tmp_path, Quantize("bcgd_w1a4"), saved), Classifier())


@pytest.mark.parametrize("rule", ["bcgd_w1a4", "binary_relax_w1a4"])
def test_weights_that_are_loaded_after_a_fit_are_judged_hard(rule, tmp_path):
    module, callback = Classifier(), Quantize(rule)
    fit(trainer(tmp_path, callback, **QUIET), module)
    other = classifier_net()
    module.net.load_state_dict(other.state_dict())

    class Look(L.Callback):
        def on_test_batch_start(self, trainer, module, *_):
            self.levels = levels(module.net)
            self.signs = torch.equal(module.net[4].weight > 0, other[4].weight > 0)

    look = Look()
    trainer(tmp_path, callback, look, **QUIET).test(module, loader())
    assert look.levels == {2}
    assert look.signs  # those of the loaded weights


class Worse(Classifier):
    """Whose validation says that float epochs are better than all quantized ones."""

    def validation_step(self, batch, batch_idx):
        is_float = len(self.net[4].weight.unique()) > 2
        self.log("val_loss", 0.1 if is_float else 10.0 - self.current_epoch)


def test_what_chooses_by_a_metric_chooses_among_quantized_epochs(tmp_path):
    saved = ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}")
    stop = EarlyStopping("val_loss", patience=2)
    callback = Quantize("bcgd_w1a4", warm_start_epochs=4)
    chief = trainer(tmp_path, callback, saved, stop, max_epochs=8)
    fit(chief, Worse())
    assert chief.current_epoch == 8
    assert saved.best_model_path.endswith("epoch=7.ckpt")
    assert len(list(tmp_path.glob("*.ckpt"))) == 2  # the best float epoch, and the best one
    again = Quantize("bcgd_w1a4")
    trainer(tmp_path, again, **QUIET).test(Worse(), loader(), ckpt_path=saved.best_model_path)
    assert again.quantization.is_quantized


def test_several_loaders(tmp_path):
    class Pairs(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch["a"][0]), batch["b"][1])

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    callback, module = Quantize("bcgd_w1a4"), Pairs()
    chief = trainer(tmp_path, callback, **QUIET)
    chief.fit(module, {"a": loader(), "b": loader()}, [loader(), loader()])
    assert levels(module.net) == {2}
    trainer(tmp_path, Quantize("bcgd_w1a4")).validate(Pairs(), [loader(), loader()], verbose=False)
    chief = trainer(tmp_path, Quantize("bcgd_w1a4"), **QUIET, limit_train_batches=0)
    with pytest.raises(QatError, match="no batch to show"):
        chief.fit(Pairs(), {"a": loader(), "b": loader()})


class Bytes(Classifier):
    """Images of bytes, which a hook turns into floats."""

    @staticmethod
    def data():
        images = torch.randint(256, (48, 3, 8, 8), dtype=torch.uint8)
        return DataLoader(TensorDataset(images, torch.arange(48) % 4), 16)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0].float() / 255, batch[1]


@pytest.mark.parametrize("options", [{}, {"precision": "64-true"}])
@pytest.mark.parametrize("kind", [Bytes, Classifier])
def test_batches_are_shown_as_the_steps_get_them(kind, options, tmp_path):
    if kind is Bytes and options:
        pytest.skip("the hook makes single floats of them")
    module, callback = kind(), Quantize("bcgd_w1a4")
    fit(trainer(tmp_path, callback, **QUIET, **options), module)
    assert levels(module.net) == {2}
    assert callback.save_packed(tmp_path / "net.safetensors")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(loader().dataset)


def test_fits_without_a_known_length(tmp_path):
    stream = DataLoader(Stream(), 16)
    chief = partial(trainer, tmp_path, **QUIET)
    with pytest.raises(QatError, match="no length"):
        chief(Quantize("bcgd_w1a4", warm_start_epochs=1), max_steps=6, max_epochs=-1).fit(
            Classifier(), stream
        )
    callback = Quantize("bcgd_w1a4", steps=6)
    chief(callback, max_steps=6, max_epochs=-1).fit(Classifier(), stream)
    assert callback.quantization.phases.optimizers[0].completed_steps == 6
    example = next(iter(loader()))[0]
    callback = Quantize("bcgd_w1a4", example=example, steps=9, warm_start_epochs=1)
    chief(callback).fit(Classifier(), loader())
    assert callback.quantization.is_quantized


def test_finders_are_refused(tmp_path):
    with pytest.raises(QatError, match="LearningRateFinder tries trainings"):
        fit(trainer(tmp_path, Quantize("bcgd_w1a4"), LearningRateFinder(), **QUIET), Classifier())


def test_a_fit_after_a_test_begins_with_its_warm_start(tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(trainer(tmp_path, Quantize("bcgd_w1a4"), saved), Classifier())
    callback, module = Quantize("bcgd_w1a4", warm_start_epochs=1), Classifier()
    trainer(tmp_path, callback).test(
        module, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False
    )

    class Look(L.Callback):
        seen = ()

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.seen = (*self.seen, callback.quantization.is_quantized)

    look = Look()
    fit(trainer(tmp_path, callback, look, **QUIET), module)
    # callbacks are asked in the order in which they were given: this one after the switch
    assert look.seen == (False,) * 3 + (True,) * 6


def test_flips_of_a_network_that_is_moved_by_one_of_two_optimizers(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, "a", "b")
    both = [
        Quantize("bcgd_w1a4", module="discriminator", stats_every_n_steps=2),
        Quantize("bcgd_w1a4", module="generator", example=torch.randn(8, 5), stats_every_n_steps=2),
    ]
    chief = L.Trainer(
        accelerator="cpu", logger=logger, max_epochs=4, callbacks=both, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, **QUIET,
    )  # fmt: skip
    chief.fit(Gan(), loader())
    with (tmp_path / "a" / "b" / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    for name in ("discriminator", "generator"):
        found = [row[f"quant/flip_rate/{name}"] for row in rows
                 if f"quant/flip_rate/{name}" in row]  # fmt: skip
        assert len(found) == 6
        assert any(float(rate) > 0 for rate in found)
        steps = [int(row["step"]) for row in rows if f"quant/flip_rate/{name}" in row]
        assert steps == [2, 4, 6, 8, 10, 12]


class Broken(L.Callback):
    def setup(self, trainer, module, stage):
        raise ValueError("broken")


def test_a_fit_that_does_not_start_leaves_nothing_behind(tmp_path):
    module, callback = Classifier(), Quantize("bcgd_w1a4")
    with pytest.raises(ValueError, match="broken"):
        fit(trainer(tmp_path, callback, Broken(), **QUIET), module)
    keys = set(module.state_dict())
    fit(trainer(tmp_path, **QUIET), module)
    assert set(module.state_dict()) == keys
    assert "configure_model" not in module.__dict__
    with pytest.raises(QatError, match=r"cannot be run on a batch: .*KeyError"):
        fit(trainer(tmp_path, Quantize("bcgd_w1a4", example=lambda b: {}[0]), **QUIET), module)
    # what could not be prepared may be tried again
    wrong = Quantize("bcgd_w1a4", example=lambda batch: batch[0][:, :1])
    for _ in range(2):
        with pytest.raises(QatError, match=r"run on \(16, 1, 8, 8\) of torch.float32.*example="):
            fit(trainer(tmp_path, wrong, **QUIET), module)
    fit(trainer(tmp_path, callback, **QUIET), module)
    assert levels(module.net) == {2}


class Rebuilt(Classifier):
    def setup(self, stage):
        self.net = classifier_net()


def test_a_module_that_makes_another_network_is_not_judged_by_it(tmp_path):
    callback, module = Quantize("bcgd_w1a4"), Rebuilt()
    fit(trainer(tmp_path, callback, **QUIET), module)
    with pytest.raises(QatError, match="made another network"):
        trainer(tmp_path, callback).test(module, loader())
    with pytest.warns(UserWarning, match="the float network is judged"):
        trainer(tmp_path, Quantize("bcgd_w1a4")).test(Classifier(), loader(), verbose=False)


class Rarely(Manual):
    """Steps by hand, every third batch."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        if batch_idx % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()


class Often(Manual):
    """Four steps for each batch, by hand."""

    def training_step(self, batch, batch_idx):
        for _ in range(4):
            super().training_step(batch, batch_idx)


def test_steps_by_hand_at_a_rate_of_their_own(tmp_path):
    seen = []

    class Look(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append(callback.quantization.is_quantized)

    callback = Quantize("binary_relax_w1a4", warm_start_epochs=2)
    with pytest.warns(UserWarning, match="ended at theta"):
        fit(trainer(tmp_path, callback, Look(), **QUIET, max_epochs=6), Rarely())
    assert seen == [False, False, True, True, True, True]  # epochs are epochs
    seen.clear()
    callback = Quantize("bcgd_w1a4", warm_start_epochs=2)
    fit(trainer(tmp_path, callback, Look(), **QUIET, max_epochs=4), Often())
    assert seen == [False, False, True, True]
    told = Quantize("binary_relax_w1a4", steps=6)
    module = Rarely()
    fit(trainer(tmp_path, told, **QUIET, max_epochs=6), module)
    assert told.quantization.phases.is_hard
    assert levels(module.net) == {2}


class Aliases(Classifier):
    """Parts of the network by other names, too."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([self.net[0], self.net[4]])


@pytest.mark.parametrize("spec", ["bcgd_w1a4", "lsq_w4a4"])
def test_parts_with_two_names(spec, tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    module, callback = Aliases(), Quantize(spec, module="net")
    fit(trainer(tmp_path, callback, saved), module)
    plain = Aliases.load_from_checkpoint(tmp_path / "last.ckpt")
    assert set(plain.state_dict()) == set(Aliases().state_dict())
    other = Quantize(spec, module="net")
    chief = trainer(tmp_path, other, **QUIET, max_epochs=4)
    fit(chief, Aliases(), ckpt_path=tmp_path / "last.ckpt")
    assert other.quantization.phases.optimizers[0].completed_steps == 12


def test_a_parameter_that_is_called_step_is_no_step():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.step = classifier_net(), nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.net(x) * self.step

    images, labels = next(iter(loader()))
    net = Named()
    training = Quantization(net, "bcgd_w1a4", example=images)
    optimizer = training.wrap(torch.optim.SGD(net.parameters(), lr=0.1))
    F.cross_entropy(net(images), labels).backward()
    wanted = net.step.detach() - 0.1 * net.step.grad
    optimizer.step()
    assert torch.equal(net.step.detach(), wanted)


def test_results_inside_of_an_evaluation(tmp_path):
    images, labels = next(iter(loader()))
    net = classifier_net()
    training = Quantization(net, "binary_relax_w1a4", example=images)
    optimizer = training.wrap(torch.optim.SGD(net.parameters(), lr=0.1), steps=10)
    F.cross_entropy(net(images), labels).backward()
    optimizer.step()
    assert levels(net) != {2}
    with training.evaluating():
        assert training.save_packed(tmp_path / "net.safetensors") > training.audit().bytes
        assert levels(net) == {2}
    assert levels(net) != {2}


@pytest.mark.parametrize(
    "options",
    [{"steps": 2.5}, {"module": 3}, {"example": [1]}, {"stats_every_n_steps": True},
     {"warm_start_epochs": "1"}, {"warm_start_epochs": None}],
)  # fmt: skip
def test_options_of_another_type(options):
    with pytest.raises(SpecError, match=rf"Quantize\({next(iter(options))}=\.\.\.\)"):
        Quantize("bcgd_w1a4", **options)
