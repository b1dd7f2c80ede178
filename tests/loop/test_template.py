"""A project of somebody else's, composed by Hydra, and the one line of the page."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, environment
from support.pages import blocks

LINE = next(b.text for b in blocks("own_module") if b.language == "yaml")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), id="plain", marks=pytest.mark.slow),
        pytest.param(("model.compile=true",), id="compiled", marks=pytest.mark.slow),
    ],
)
def test_one_line_of_the_page_quantizes_a_template_project(words, tmp_path):
    shutil.copytree(Path(__file__).parent / "template", tmp_path / "project")
    callbacks = tmp_path / "project" / "configs" / "callbacks" / "default.yaml"
    assert len(LINE.strip().splitlines()) == 1
    callbacks.write_text(callbacks.read_text(encoding="utf-8") + LINE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "src/train.py", *words],
        cwd=tmp_path / "project", env=environment(PYTHONPATH=str(ROOT)), text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "levels [2, 2, 2]" in done.stdout
    assert "bytes packed" in done.stdout + done.stderr
    assert "test/acc" in done.stdout
