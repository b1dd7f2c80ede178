"""The group of a run in Weights & Biases, and the sources that a run reaches."""

import ast
import os

import pytest

from qat.storage.provenance import _OUTSIDE
from qat.train.wandb_group import group_run
from support import ROOT


@pytest.mark.parametrize(
    ("overrides", "group"),
    [
        ([], "sweep"),
        (["experiment=faqd", "seed=1"], "faqd"),
        (["experiment=a", "experiment=b"], "b"),
    ],
)
def test_an_experiment_wins_over_the_sweep(overrides, group, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "x")  # so that it is as before in the end
    monkeypatch.delenv("WANDB_RUN_GROUP")
    group_run(overrides, "sweep")
    assert os.environ["WANDB_RUN_GROUP"] == group


def test_each_run_of_a_process_has_its_own_group_unless_the_user_gave_one(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "x")
    monkeypatch.delenv("WANDB_RUN_GROUP")
    group_run(["experiment=one"])
    group_run(["experiment=two"])
    assert os.environ["WANDB_RUN_GROUP"] == "two"
    group_run([])
    assert "WANDB_RUN_GROUP" not in os.environ
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    group_run(["experiment=one"], "sweep")
    assert os.environ["WANDB_RUN_GROUP"] == "mine"


def modules():
    """Dotted name -> what it imports of qat, also inside functions."""
    found = {}
    for path in (ROOT / "qat").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[name] = {
            imported
            for node in ast.walk(tree)
            for imported in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
                if isinstance(node, ast.ImportFrom) else []
            )
            if imported and imported.startswith("qat")
        }  # fmt: skip
    return found


def test_no_code_that_a_run_reaches_is_left_out_but_pictures():
    known = modules()
    reached, edge = set(), {"qat.train.run"}
    while edge:
        reached |= edge
        edge = {m for name in edge for m in known.get(name, ())} & known.keys() - reached
    assert {"qat.train.fit", "qat.export.packed.file", "qat.optim.rule"} <= reached
    outside = {
        name for name in reached if name.split(".")[1:2] and f"{name.split('.')[1]}" in _OUTSIDE
    }
    assert {name.split(".")[1] for name in outside} <= {"report"}
