import pytest

from qat.errors import SpecError
from qat.spec.distill import DistillSpec, FeatureSpec, LogitSpec
from qat.spec.schema import read


def distill(**values):
    return read(DistillSpec, {"labels": True} | values, "distill")


def test_the_default_learns_logits_and_affinities_and_selects_by_what_it_may_see():
    assert distill().selection == "accuracy"
    assert distill(labels=False).selection == "agreement"
    assert distill(select="last").selection == "last"
    assert distill(select="agreement").selection == "agreement"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"labels": False, "select": "accuracy"}, ["select=accuracy", "labels=false", "last"]),
        ({"teacher_layers": ["a"]}, ["distill.teacher_layers needs distill.layers"]),
        ({"layers": ["a"], "teacher_layers": ["a", "b"]}, ["pair up", "['a']", "['a', 'b']"]),
        ({"layers": []}, ["pair up", "[]"]),
        ({"logits": {"loss": "none"}, "features": {"weight": 0}}, ["nothing to learn", "none"]),
        (
            {"labels": False, "logits": {"loss": "none"}, "features": {"loss": "none"}},
            ["nothing to learn"],
        ),
        ({"logits": {"loss": "l1"}}, ["distill.logits.loss", "mse, kl, none", "l1"]),
        ({"logits": {"temperature": 0}}, ["distill.logits.temperature", "> 0"]),
        ({"features": {"order": 3}}, ["distill.features.order", "1, 2"]),
        ({"features": {"columns": 0}}, ["distill.features.columns", ">= 1"]),
        ({"features": {"adaptor": "conv"}}, ["did you mean distill.features.adapter"]),
        ({"label_weight": -1}, ["distill.label_weight", ">= 0"]),
        ({"teacher_training": {"epochs": 0}}, ["distill.teacher_training.epochs", ">= 1"]),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(values, words):
    with pytest.raises(SpecError) as caught:
        distill(**values)
    assert all(word in str(caught.value) for word in words), caught.value


def test_built_directly_it_is_checked_as_well():
    with pytest.raises(SpecError, match=r"distill\.features\.weight"):
        FeatureSpec(weight=-1)
    with pytest.raises(SpecError, match=r"distill\.logits\.weight"):
        LogitSpec(weight=-1)


@pytest.mark.parametrize(
    ("teacher", "is_name"),
    [
        ("timm/resnet18.a1_in1k", True),
        ("torchvision/resnet18", True),
        ("runs/x", False),
        (None, False),
    ],
)
def test_names_and_paths_are_told_apart(teacher, is_name):
    assert DistillSpec(labels=True, teacher=teacher).is_pretrained_name is is_name


def test_whether_labels_are_used_must_be_said():
    # else what is left of a recipe after ~distill would distil in silence
    with pytest.raises(SpecError, match=r"distill\.labels must be given"):
        read(DistillSpec, {"teacher_training": {"lr": 0.1}}, "distill")


def test_none_is_a_choice_of_its_own():
    nothing = {"logits": {"loss": "none"}, "features": {"loss": "none"}}
    assert distill(**nothing).is_none
    assert not distill().is_none
    assert not distill(logits={"loss": "none"}).is_none
