"""The code version: which changes count, and that they do."""

import shutil
import subprocess
import sys

import pytest

from support import ROOT

ASK = "from qat.storage.provenance import code_version as v; print(v().sources, v().commit)"


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "qat", tmp_path / "qat", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def asked(folder):
    answer = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=True, cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return answer.stdout.split()


def test_a_copy_has_the_same_sources_and_no_commit(copy):
    from qat.storage.provenance import code_version

    assert asked(copy) == [code_version().sources, "None"]


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("qat/optim/rule.py", True),
        ("qat/train/run.py", True),
        ("qat/data/split.py", True),
        ("qat/report/page/html.py", False),
        ("qat/sweep/run.py", False),
        ("qat/commands/train.py", False),
    ],
)
def test_what_can_change_a_number_counts(copy, path, counts):
    before = asked(copy)
    with (copy / path).open("a") as file:
        file.write("\n# a change\n")
    assert (asked(copy) != before) == counts


def test_a_file_that_is_renamed_counts(copy):
    before = asked(copy)
    (copy / "qat" / "optim" / "rule.py").rename(copy / "qat" / "optim" / "rules.py")
    assert asked(copy) != before


def test_a_checkout_tells_its_commit_and_changes(copy):
    (copy / ".gitignore").write_text("__pycache__/\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(copy)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert asked(copy)[1] == head.stdout[:10]
    (copy / "qat" / "cli.py").write_text("")
    assert asked(copy)[1] == head.stdout[:10] + "+"
