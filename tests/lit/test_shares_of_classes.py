"""The loss of labels that are shares of classes: that of classes, and linear between them."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from qat.distill.teacher import Answer
from qat.lit.classifier import LitClassifier, hit_rate
from qat.lit.distiller import LitDistiller
from qat.models.small import small_model
from qat.quantize.prepare import prepare
from qat.spec.distill import DistillSpec
from qat.spec.quant import QuantSpec
from qat.spec.run import SchedulerSpec, TrainingSpec

N, K = 9, 4
DRAW = torch.Generator().manual_seed(3)
LOGITS = torch.randn(N, K, generator=DRAW)
CLASSES = torch.randint(K, (N,), generator=DRAW)
SHARES = torch.rand(N, K, generator=DRAW).softmax(1)
WEIGHTS = torch.tensor([0.3, 1.0, 2.0, 0.7])
SETTINGS = [(w, s) for w in (None, WEIGHTS) for s in (0.0, 0.1)]


def classifier(weights, smoothing):
    images = torch.zeros(2, 1, 8, 8)
    net = small_model("lenet5", num_classes=K, in_channels=1, image_size=8)
    spec = QuantSpec()
    return LitClassifier(
        prepare(net, spec, example=images), spec, classes=K, class_weights=weights,
        optimizer=partial(torch.optim.SGD, lr=0.1), scheduler=SchedulerSpec(),
        training=TrainingSpec(label_smoothing=smoothing),
    )  # fmt: skip


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
def test_whole_shares_are_classes(weights, smoothing):
    lit = classifier(weights, smoothing)
    whole = F.one_hot(CLASSES, K).float()
    hard = F.cross_entropy(LOGITS, CLASSES, weight=weights, label_smoothing=smoothing)
    assert torch.equal(lit.criterion(LOGITS, CLASSES), hard)
    torch.testing.assert_close(lit.criterion(LOGITS, whole), hard)


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
def test_the_formula_term_by_term(weights, smoothing):
    w = torch.ones(K) if weights is None else weights
    above = below = 0.0
    for n in range(N):
        log = LOGITS[n].double() - LOGITS[n].double().exp().sum().log()
        for k in range(K):
            wanted = (1 - smoothing) * SHARES[n, k].double() + smoothing / K
            above += float(-w[k] * wanted * log[k])
            below += float(w[k] * SHARES[n, k])
    found = classifier(weights, smoothing).criterion(LOGITS, SHARES)
    assert float(found) == pytest.approx(above / below, rel=1e-6)


def test_a_blend_of_two_classes_costs_the_blend_of_their_losses():
    lit, other = classifier(None, 0.0), CLASSES.roll(1)
    share = torch.linspace(0, 1, N).view(N, 1)
    label = share * F.one_hot(CLASSES, K) + (1 - share) * F.one_hot(other, K)
    own, its = (F.cross_entropy(LOGITS, c, reduction="none") for c in (CLASSES, other))
    expected = (share.view(N) * own + (1 - share.view(N)) * its).mean()
    torch.testing.assert_close(lit.criterion(LOGITS, label), expected)


def test_half_precision_takes_them():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = (LOGITS @ torch.eye(K)).detach()
        assert logits.dtype is torch.bfloat16
        found = classifier(WEIGHTS, 0.1).criterion(logits, SHARES)
    expected = classifier(WEIGHTS, 0.1).criterion(logits.float(), SHARES)
    torch.testing.assert_close(found, expected)


def test_the_class_of_the_largest_share_is_the_one_to_hit():
    said = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    shares = torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0]])
    assert hit_rate(said, shares) == pytest.approx(2 / 3)
    assert hit_rate(said, torch.tensor([0, 1, 2])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("labels", [True, False])
def test_a_student_learns_from_shares_beside_its_teacher(labels):
    teacher = LOGITS.flip(0)
    student = SimpleNamespace(
        net=lambda images: LOGITS,
        teacher=SimpleNamespace(ask=lambda images: Answer(logits=teacher, maps=[])),
        distill=DistillSpec(labels=labels, label_weight=0.5),
        feature_loss=None,
        score="acc" if labels else "agreement",
        criterion=classifier(WEIGHTS, 0.1).criterion,
    )
    student._between = partial(LitDistiller._between, student)
    student._terms = partial(LitDistiller._terms, student)
    images = torch.zeros(N, 1, 8, 8)
    found = LitDistiller.objective(student, (images, SHARES) if labels else images)
    weight = student.distill.logits.weight
    expected = weight * LitDistiller._between(student, LOGITS, teacher)
    if labels:
        expected = expected + 0.5 * student.criterion(LOGITS, SHARES)
        assert found["acc"] == hit_rate(LOGITS, SHARES.argmax(1))
    torch.testing.assert_close(found["loss"], expected)
