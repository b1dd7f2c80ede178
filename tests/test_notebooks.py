"""Every notebook runs from top to bottom and is kept with its answers, which tell of no machine."""

import base64
import json
import re
import struct
import subprocess
import sys
from functools import partial

import pytest

from qat.functional.stairs import relu_stairs
from qat.report.figures.estimators import draw_estimators
from support import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = partial(pytest.mark.parametrize, "path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def answers_of(path):
    return [answer for cell in cells_of(path) for answer in cell["outputs"]]


def pictures_of(path):
    found = [answer.get("data", {}).get("image/png") for answer in answers_of(path)]
    return [base64.b64decode("".join(text)) for text in found if text]


def test_they_are_numbered_without_a_hole():
    assert [path.stem for path in NOTEBOOKS] == ["01_estimators", "02_distillation"]


@pytest.mark.slow
@each()
def test_it_runs(path, tmp_path):
    script = tmp_path / "cells.py"
    code = ["".join(cell["source"]) for cell in cells_of(path)]
    script.write_text("\n\n".join(code), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, script],
        cwd=path.parent,
        env={"MPLBACKEND": "agg", "PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-2000:]


@each()
def test_it_is_kept_with_pictures_in_a_small_file(path):
    assert [cell["execution_count"] for cell in cells_of(path)] == [
        *range(1, len(cells_of(path)) + 1)
    ]
    assert pictures_of(path)
    assert path.stat().st_size < 500_000


@each()
def test_what_is_kept_tells_of_no_machine(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert not any(cell["metadata"] for cell in notebook["cells"])
    answers = answers_of(path)
    assert {answer["output_type"] for answer in answers} <= {"stream", "execute_result"}
    assert all(answer.get("name", "stdout") == "stdout" for answer in answers)
    for answer in answers:
        text = "".join(answer.get("text", answer.get("data", {}).get("text/plain", "")))
        assert not re.search(r"(?<![\w.)])[/~]\w+/|\w:\\|://|<Figure", text)
    for picture in pictures_of(path):  # no versions, times or paths beside the pixels
        assert chunks_of(picture) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def chunks_of(png):
    """The kinds of chunks that a PNG file has."""
    place, kinds = 8, set()
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        kinds.add(png[place + 4 : place + 8])
        place += 12 + size
    return kinds


@pytest.mark.slow
def test_a_figure_shows_by_itself():
    one, other = (draw_estimators(relu_stairs(2))._repr_png_() for _ in range(2))
    assert one == other
    width, height = struct.unpack(">II", one[16:24])
    assert 800 < width < 1000
    assert 400 < height < 700


def shape_of(cells):
    """Sources and answers of cells; numbers, which another machine may round otherwise, as #."""
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
    return [
        (
            "".join(cell["source"]),
            [
                (sorted(answer.get("data", {})), number.sub("#", "".join(answer.get("text", ""))))
                for answer in cell["outputs"]
            ],
        )
        for cell in cells
    ]


@pytest.mark.slow
@each()
def test_what_is_kept_is_what_it_answers(path):
    pytest.importorskip("nbclient", reason="the extra notebooks")
    pytest.importorskip("ipykernel", reason="the extra notebooks")
    from notebooks import executed

    found = [cell for cell in executed(path)["cells"] if cell["cell_type"] == "code"]
    assert shape_of(found) == shape_of(cells_of(path))
