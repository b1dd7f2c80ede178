"""Students and teachers that do not fit together are refused before the first step."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qat.errors import CheckpointError, SpecError
from qat.lit.pairing import distiller
from qat.models.small import small_model
from qat.quantize.plan import resolve
from qat.quantize.prepare import prepare
from qat.spec.data import DataSpec
from qat.spec.distill import DistillSpec, FeatureSpec
from qat.spec.quant import QuantSpec
from qat.spec.run import (
    RunSpec,
    SchedulerSpec,
    TrainingSpec,
    WarmStartSpec,
)

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def net(name="resnet20", *, classes=10, channels=1, size=8):
    torch.manual_seed(0)
    return small_model(name, num_classes=classes, in_channels=channels, image_size=size)


def run(distill):
    return RunSpec(
        model={}, data=DataSpec(), quant=QuantSpec(), optimizer={}, scheduler=SchedulerSpec(),
        trainer={"max_epochs": 1}, warm_start=WarmStartSpec(), training=TrainingSpec(),
        distill=distill,
    )  # fmt: skip


def pair(teacher, distill=None, *, images=IMAGES, student=None):
    spec = run(distill or DistillSpec(labels=False))
    student = prepare(student or net(), spec.quant, example=images)
    return distiller(
        student, resolve(student, spec.quant), spec, teacher, "here", example=images, classes=10,
        optimizer=partial(torch.optim.SGD, lr=0.1), scheduler=spec.scheduler,
        training=spec.training,
    )  # fmt: skip


def refused(words, *args, **kwargs):
    with pytest.raises(SpecError) as caught:
        pair(*args, **kwargs)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_fitting_pair_taps_the_stages_of_both():
    lit = pair(net("resnet32"))
    assert lit.layers == lit.teacher.layers == ("layer1", "layer2", "layer3")
    assert lit.monitor == "val/agreement"
    assert lit.score == "agreement"
    assert not any(p.requires_grad for p in lit.teacher.net.parameters())


def test_other_classes():
    refused(["here gives (7,)", "10 classes", "distill.teacher=null"], net(classes=7))


def test_other_channels():
    refused(["cannot take images of shape (1, 8, 8)", "change data"], net(channels=3))


def test_an_image_too_small_for_the_teacher():
    refused(["cannot take images", "data.image_size"], net("lenet5", size=32))


def test_no_logits_at_all():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    refused(["gives tuple for an image"], Two())


def test_logits_that_are_not_finite():
    broken = net()
    nn.init.constant_(broken.fc.bias, float("nan"))
    refused(["here gives logits that are not finite"], broken)


def test_a_wrong_layer_lists_the_candidates():
    refused(
        ["distill.layers: 'layer4' has no feature map", "layer3 64x2x2"],
        net(), DistillSpec(labels=True, layers=("layer1", "layer4")),
    )  # fmt: skip
    refused(
        ["distill.teacher_layers: 'stage1'", "candidates are", "layer1 16x8x8"],
        net(), DistillSpec(labels=True, layers=("layer1",), teacher_layers=("stage1",)),
    )  # fmt: skip
    refused(
        ["distill.layers (teacher): 'layer1'", "relu2"],
        net("lenet5"), DistillSpec(labels=True, layers=("layer1",)),
    )  # fmt: skip


def test_other_numbers_of_stages():
    refused(["the student has 3 stages", "the teacher 1 (relu2)", "pair them"], net("lenet5"))


def test_hints_of_other_channels_need_an_adapter():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()
            self.body.layer3.append(nn.Conv2d(64, 80, 1))
            self.body.fc = nn.Linear(80, 10)

        def forward(self, x):
            return self.body(x)

    options = {"layers": ("layer3",), "teacher_layers": ("body.layer3",)}
    refused(
        ["[64]", "[80]", "distill.features.adapter=conv"],
        Wide(), DistillSpec(labels=True, features=FeatureSpec(loss="hint"), **options),
    )  # fmt: skip
    fitting = FeatureSpec(loss="hint", adapter="conv")
    lit = pair(Wide(), DistillSpec(labels=True, features=fitting, **options))
    assert lit.feature_loss.adapters[0].weight.shape == (80, 64, 1, 1)
    assert "feature_loss.adapters.0.weight" in dict(lit.learned_parameters())


def test_a_map_of_one_position_has_no_affinity():
    refused(
        ["layer3 has one position"],
        net(size=4), DistillSpec(labels=True, layers=("layer3",)), images=IMAGES[:, :, :4, :4],
        student=net(size=4),
    )  # fmt: skip


def test_a_teacher_in_training_mode_is_set_to_evaluation():
    assert not pair(net().train()).teacher.net.training


def test_a_teacher_of_other_width_and_size_is_fine():
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.body = nn.AvgPool2d(2), net(size=4)

        def forward(self, x):
            return self.body(self.pool(x))

    distill = DistillSpec(labels=True, layers=("layer1",), teacher_layers=("body.layer1",))
    lit = pair(Halved(), distill)
    assert lit.feature_loss([torch.randn(2, 16, 8, 8)], lit.teacher.ask(IMAGES[:2]).maps).isfinite()


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        ({"sha256": 64 * "0", "origin": "there"}, "teacher there of sha256 0{12}, now here has"),
        (None, "began without a teacher"),
    ],
)
def test_a_resume_with_another_teacher_is_refused(recorded, words):
    with pytest.raises(CheckpointError, match=words):
        pair(net("resnet32")).on_load_checkpoint({"qat": {"teacher": recorded}})


def test_a_resume_with_other_images_is_refused(monkeypatch):
    lit = pair(net("resnet32"))
    monkeypatch.setattr(lit, "_fingerprint", lambda: "those of now")
    monkeypatch.setattr(lit, "_trainer", SimpleNamespace(max_epochs=3))
    began = {"teacher": {"sha256": lit.teacher.sha256, "origin": "here"}, "images": "others"}
    with pytest.raises(CheckpointError, match=r"images \(others\), now there are \(those of now\)"):
        lit.on_load_checkpoint({"qat": began})
