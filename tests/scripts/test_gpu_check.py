"""The check of a GPU, rehearsed on a CPU: its parts, its clock, its JSON."""

import json
import subprocess
import sys
import time

import gpu_check
import pytest

from qat.errors import SpecError
from support import ROOT, environment


def test_outcomes_are_read_as_tests_end_alone_or_among_workers():
    alone = (
        "tests/gpu/test_a.py::test_b[{'foreach': True}-SGD] PASSED   [  1%]\n"
        "tests/gpu/test_a.py::test_c FAILED  [ 50%]\ntests/gpu/test_a.py::test_d "
    )
    among = (
        "[gw0] [ 10%] SKIPPED tests/gpu/test_a.py::test_b[x y] \n[gw1] [ 20%] ERROR tests/gpu/b::c"
    )
    assert gpu_check._outcomes(alone) == [
        {"name": "tests/gpu/test_a.py::test_b[{'foreach': True}-SGD]", "outcome": "passed"},
        {"name": "tests/gpu/test_a.py::test_c", "outcome": "failed"},
    ]
    assert gpu_check._outcomes(among) == [
        {"name": "tests/gpu/test_a.py::test_b[x y]", "outcome": "skipped"},
        {"name": "tests/gpu/b::c", "outcome": "failed"},
    ]


def test_a_command_that_runs_out_is_ended_with_what_it_started():
    begin = time.monotonic()
    slow = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"]
    assert gpu_check._ended(slow, 0.5) is None
    assert gpu_check._ended([sys.executable, "-c", "raise SystemExit(3)"], 30) == 3
    assert time.monotonic() - begin < 30


def test_without_a_gpu_it_says_how_to_rehearse():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SpecError, match="rehearse with device=cpu"):
        gpu_check.main([])
    with pytest.raises(SpecError, match="parts=bench is unknown"):
        gpu_check.main(["device=cpu", "parts=[bench]"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rehearsal_on_a_cpu(tmp_path):
    """Every part for real; a machine too slow for the time says so and keeps to it."""
    words = ("device=cpu", "minutes=6", "batch=1", "select=affinities or scaler", "out=found.json")
    command = [sys.executable, str(ROOT / "scripts/gpu_check.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    report = json.loads((tmp_path / "found.json").read_text())
    assert done.returncode == {"passed": 0, "ran out": 2}[report["verdict"]], done.stdout
    assert report["seconds"] <= 6 * 60 + 30
    assert report["versions"]["torch"]
    parts = report["parts"]
    assert list(parts) == ["trainings", "benchmark", "tests"]
    assert parts["tests"]["results"]
    for part in parts.values():
        assert all(result["outcome"] == "passed" for result in part["results"])
        assert part["results"] or part["verdict"] == "ran out"
    for run in parts["trainings"]["results"]:
        assert run["resume_is_bitwise"]
    for mode in parts["benchmark"]["results"]:
        assert mode["images_per_second"] > 0
