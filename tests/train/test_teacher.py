"""A teacher out of a run was trained for the student's task, or is refused."""

from types import SimpleNamespace

import pytest

from qat.errors import SpecError
from qat.train.teacher import _check_task

TASK = {
    "classes": tuple("0123456789"), "channels": 1, "image_size": 8, "mean": (0.5,), "std": (0.5,),
    "options": SimpleNamespace(name="digits"),
}  # fmt: skip
OTHER = {"classes": ("a", "b"), "channels": 3, "image_size": 12, "mean": (0.1,), "std": (0.1,)}


def teacher(**other):
    task = SimpleNamespace(**{**TASK, **other})
    return SimpleNamespace(classes=task.classes, data=task)


@pytest.mark.parametrize("fact", OTHER)
def test_a_teacher_of_other_images_is_refused(fact):
    _check_task(teacher(), SimpleNamespace(**TASK), "here")
    name = "normalisation" if fact in ("mean", "std") else fact
    with pytest.raises(SpecError, match=f"teacher=here was trained on data=digits with {name} "):
        _check_task(teacher(**{fact: OTHER[fact]}), SimpleNamespace(**TASK), "here")
