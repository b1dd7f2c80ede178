"""The papers' recipes compose, and hold the numbers that their sources give."""

import pytest

from qat.compose import checked, conf_folder
from qat.spec.run import RunSpec

# model, data, rule, bits (weight, activation), ends, epochs (all, float), lr, momentum, batch
RECIPES = {
    "bcgd_cifar10_resnet20": (
        "resnet20", "cifar10", "bcgd", (1, 4), ("quantized", "float"), (400, 200), 0.1, 0.95, 128,
    ),
    "bcgd_cifar10_vgg11": (
        "vgg11", "cifar10", "bcgd", (1, 4), ("quantized", "float"), (400, 200), 0.1, 0.95, 128,
    ),
    "bcgd_imagenet_resnet18": (
        "resnet18", "imagenet", "bcgd", (1, 4), ("quantized", "quantized"), (160, 80), 0.1, 0.9,
        256,
    ),
    "bcgd_imagenet_resnet18_float_ends": (
        "resnet18", "imagenet", "bcgd", (1, 4), ("float", "float"), (160, 80), 0.1, 0.9, 256,
    ),
    "binary_relax_cifar10_vgg11": (
        "vgg11", "cifar10", "binary_relax", (1, 32), ("quantized", "float"), (400, 200), 0.1, 0.9,
        128,
    ),
    "faqd_cifar10_resnet20_weights": (
        "resnet20", "cifar10", "binary_connect", (1, 32), ("quantized", "float"), (200, 0), 0.01,
        0.9, 100,
    ),
    "faqd_cifar10_resnet20": (
        "resnet20", "cifar10", "binary_connect", (1, 4), ("quantized", "float"), (200, 0), 0.01,
        0.9, 100,
    ),
    "faqd_cifar100_resnet56": (
        "resnet56", "cifar100", "binary_connect", (1, 4), ("quantized", "float"), (200, 0), 0.01,
        0.9, 100,
    ),
    "faqd_tiny_imagenet_resnet18": (
        "resnet18", "tiny_imagenet", "binary_connect", (1, 4), ("quantized", "float"), (200, 0),
        0.01, 0.9, 64,
    ),
    "ste_lenet5_mnist": (
        "lenet5", "mnist", "float_only", (32, 4), None, (100, 50), 0.1, 0.9, 64,
    ),
    "ste_vgg11_cifar10": (
        "vgg11", "cifar10", "float_only", (32, 4), None, (400, 200), 0.01, 0.9, 128,
    ),
    "faqd_resnet20_digits": (
        "resnet20", "digits", "bcgd", (1, 4), ("quantized", "quantized"), (40, 8), 0.02, 0.9, 64,
    ),
    "ste_resnet20_digits": (
        "resnet20", "digits", "float_only", (32, 4), None, (24, 0), 0.1, 0.9, 64,
    ),
    "glyphs_resnet20": (
        "resnet20", "glyphs", "bcgd", (1, 4), ("quantized", "quantized"), (12, 4), 0.02, 0.9, 32,
    ),
    "mnist5k_lenet5": (
        "lenet5", "mnist5k", "bcgd", (1, 4), ("quantized", "quantized"), (40, 12), 0.02, 0.9, 64,
    ),
    "ste_lenet5_mnist5k": (
        "lenet5", "mnist5k", "float_only", (32, 4), None, (50, 25), 0.1, 0.9, 64,
    ),
    "ste_resnet20_cifar10": (
        "resnet20", "cifar10", "float_only", (32, 4), None, (400, 200), 0.01, 0.9, 128,
    ),
}  # fmt: skip


def composed(name: str, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    # the images of the recipes are not here; everything else is checked as for a real run
    monkeypatch.setattr("qat.spec.check.check_data", lambda options: None)
    return checked(conf_folder(), [f"experiment={name}"]).spec


def test_every_recipe_is_in_the_table():
    assert {p.stem for p in (conf_folder() / "experiment").glob("*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_numbers(name, monkeypatch):
    spec = composed(name, monkeypatch)
    model, data, rule, bits, ends, epochs, lr, momentum, batch = RECIPES[name]
    assert (spec.model["name"], spec.data.name, spec.quant.rule.name) == (model, data, rule)
    assert (spec.quant.weight.bits, spec.quant.activation.bits) == bits
    assert ends is None or (spec.quant.ends.first, spec.quant.ends.last) == ends
    assert (spec.trainer["max_epochs"], spec.warm_start.epochs) == epochs
    assert (spec.optimizer["lr"], spec.optimizer["momentum"]) == (lr, momentum)
    assert spec.optimizer["weight_decay"] == 1e-4
    assert spec.data.batch_size == batch
    assert spec.training.decay == "all"


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("faqd_c") or "tiny" in n])
@pytest.mark.parametrize("labels", [True, False])
def test_the_distillation_recipes_sum_as_the_authors(name, labels, monkeypatch):
    monkeypatch.setattr("qat.spec.check.check_data", lambda options: None)
    given = [f"experiment={name}", f"distill.labels={str(labels).lower()}"]
    spec = checked(conf_folder(), given).spec
    distill = spec.distill
    assert distill.labels == labels
    assert distill.selection == ("accuracy" if labels else "agreement")
    assert (distill.logits.loss, distill.logits.weight, distill.label_weight) == ("mse", 1.0, 0.3)
    features = distill.features
    assert (features.loss, features.weight, features.order) == ("affinity", 0.1, 1)
    assert (features.reduction, features.adapter) == ("authors", "conv_relu")
    assert distill.teacher_training.lr == 0.1
    teachers = {"cifar10": "resnet110", "cifar100": "resnet110", "tiny_imagenet": "resnet34"}
    assert distill.teacher_model["name"] == teachers[spec.data.name]
    assert spec.optimizer["nesterov"] is True
    assert spec.scheduler.name == "cosine"
    clips = None if "weights" in name else 20.0
    assert spec.trainer["gradient_clip_val"] == clips


@pytest.mark.parametrize("option", ["kd", "fitnet", "none"])
def test_another_distillation_replaces_that_of_a_recipe_whole(option, monkeypatch):
    monkeypatch.setattr("qat.spec.check.check_data", lambda options: None)
    alone = checked(conf_folder(), [f"distill={option}"]).spec.distill
    given = ["experiment=faqd_cifar10_resnet20", f"distill={option}"]
    found = checked(conf_folder(), given).spec.distill
    if option == "none":
        assert found is None
    else:
        assert (found.logits, found.features) == (alone.logits, alone.features)
        assert found.label_weight == alone.label_weight


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("ste_")])
def test_the_ste_comparison_freezes_alpha_and_has_no_affine_norm(name, monkeypatch):
    spec = composed(name, monkeypatch)
    assert spec.quant.activation.step_rate == 0
    assert spec.quant.activation.step_start == "table"
    assert spec.model["norm_affine"] is False


def test_binary_relax_grows_as_in_the_notebook(monkeypatch):
    rule = composed("binary_relax_cifar10_vgg11", monkeypatch).quant.rule
    assert rule.final == pytest.approx(1.04**150, rel=2e-3)
    assert rule.hard_from == 150 / 200


RUN_HERE = ("digits", "glyphs", "mnist5k", "ste")


@pytest.mark.parametrize("name", [n for n in RECIPES if not any(w in n for w in RUN_HERE)])
def test_every_recipe_says_that_it_was_not_run(name):
    text = (conf_folder() / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith(f"# @package _global_\n# python train.py experiment={name}")
    assert "Not run here" in text
