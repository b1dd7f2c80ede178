"""The check of a GPU, rehearsed on a CPU: its parts, its clock, its JSON."""

import copy
import json
import os
import re
import subprocess
import sys
import time

import gpu_check
import pytest
import torch

from qat.errors import SpecError
from qat.storage.checkpoint import checkpoint_name, save
from support import ROOT, environment
from support.real_run import ranks_of


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


def test_a_part_that_is_stopped_leaves_nothing_running(tmp_path):
    """As `timeout` or a scheduler stops it: by SIGTERM."""
    words = ("device=cpu", "parts=[trainings]", f"out={tmp_path}/found.json")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/gpu_check.py"), *words],
        env=environment() | {"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not (children := ranks_of(process.pid)):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)
    assert json.loads((tmp_path / "found.json").read_text())["parts"] == {}
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_runs_that_differ_are_told_by_the_names_of_their_tensors(tmp_path):
    base = {"state_dict": {"a": torch.zeros(3), "b": torch.ones(2)}, "optimizer_states": []}
    other = {"state_dict": {"a": torch.zeros(3), "c": torch.ones(2)}, "optimizer_states": []}
    nudged = copy.deepcopy(base)
    nudged["state_dict"]["a"][1] = 1e-45  # one bit
    folders = []
    for name, content in (("base", base), ("other", other), ("nudged", nudged)):
        folders.append(tmp_path / name)
        (folders[-1] / "checkpoints" / "last").mkdir(parents=True)
        save(content, folders[-1] / "checkpoints" / "last" / checkpoint_name(1))
    assert gpu_check._differences(folders[0], folders[0]) == []
    names = [[n.rpartition(".")[2] for n in gpu_check._differences(folders[0], f)] for f in folders]
    assert [sorted(found) for found in names] == [[], ["b", "c"], ["a"]]


def test_without_a_gpu_it_says_how_to_rehearse():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SpecError, match="rehearse with device=cpu"):
        gpu_check.main([])
    for words, told in {
        "parts=[bench]": "parts=bench is unknown",
        "parts=[]": "checks nothing",
        "only=tests": "only must be",
        "out=/nowhere/found.json": "out=/nowhere/found.json cannot be written: No such file",
    }.items():
        with pytest.raises(SpecError, match=re.escape(told)):
            gpu_check.main(["device=cpu", words])


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
