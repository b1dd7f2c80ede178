"""Sweeps by the real command: killed and given again, with failures, searches and launchers."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from support import ROOT
from support.real_run import PLAIN, differences, start, train

SHORT = (
    "trainer.max_epochs=2", "warm_start.epochs=1", "training.checkpoint_every=2",
    "trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
)  # fmt: skip
TWELVE = (
    "-m", "model=lenet5", "quant=float,binary_connect_w1a4,bcgd_w1a4,binary_relax_w1a32",
    "seed=1,2,3", *SHORT, "data.batch_size=128", "sweep.parallel=2", "training.threads=1", *PLAIN,
)  # fmt: skip


def jobs(folder):
    """Run folders of a sweep by their config hash."""
    return {path.name.split("-")[-2]: path for path in folder.glob("*-*-*") if path.is_dir()}


def status(run):
    path = run / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {"state": None}


def finished(folder):
    """Finished jobs with the time at which their summary was written."""
    return {
        name: (run / "summary.json").stat().st_mtime_ns
        for name, run in jobs(folder).items()
        if status(run)["state"] == "finished"
    }


def kill_group(process):
    """SIGKILL to the sweep alone: its jobs have to notice by themselves."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def descendants(pid):
    text = subprocess.run(
        ["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in text.stdout.splitlines()[1:]]
    found, edge = [], {pid}
    while edge:
        new = [row for row in rows if int(row[1]) in edge]
        found += new
        edge = {int(row[0]) for row in new}
    return found


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twelve_jobs_killed_three_times_end_as_undisturbed(tmp_path):
    generator = random.Random(20261121)
    done = {}
    for kill in range(3):
        process = start(*TWELVE, "hydra.sweep.dir=killed", cwd=tmp_path)
        goal = len(done) + generator.randint(1, 3)
        wait_for(lambda goal=goal: len(finished(tmp_path / "killed")) >= goal)
        time.sleep(generator.uniform(0, 1.5))
        if kill == 1:  # a job alone; the sweep marks it and goes on with the next
            working = [r for r in descendants(process.pid) if "forkserver" in r[2]]
            os.kill(int(working[-1][0]), signal.SIGKILL)
            time.sleep(0.5)
        kill_group(process)
        now = finished(tmp_path / "killed")
        assert done.items() <= now.items(), "a finished job ran again"
        done = now
    printed = train(*TWELVE, "hydra.sweep.dir=killed", cwd=tmp_path)
    assert f"{len(done)} finished, skipped" in printed
    assert done.items() <= finished(tmp_path / "killed").items()
    assert len(finished(tmp_path / "killed")) == 12
    train(*TWELVE, "hydra.sweep.dir=whole", cwd=tmp_path)
    one, other = jobs(tmp_path / "killed"), jobs(tmp_path / "whole")
    assert one.keys() == other.keys()
    for name, run in one.items():
        assert not differences(run, other[name]), run
        assert (run / "metrics.csv").read_bytes() == (other[name] / "metrics.csv").read_bytes()
        ends = [json.loads((r / "summary.json").read_text()) for r in (run, other[name])]
        assert ends[0]["last"] == ends[1]["last"]


QUICK = ("model=lenet5", "debug=quick", "training.threads=1", *PLAIN)


@pytest.mark.slow
def test_failures_leave_the_others_alone_and_are_all_told(tmp_path):
    # a learning rate that overflows at once, twice, among sound ones
    command = ("-m", *QUICK, "optimizer.lr=0.02,1e6", "seed=1,2", "sweep.name=some")
    first = train(*command, cwd=tmp_path, code=1)
    assert "not finished (2 of 4)" in first
    folders = jobs(tmp_path / "sweeps" / "some").values()
    states = sorted(status(run)["state"] for run in folders)
    assert states == ["failed", "failed", "finished", "finished"]
    for run in folders:
        content = status(run)
        assert content["code"]["sources"] == run.name.split("-")[-1]
        assert content["config_hash"] == run.name.split("-")[-2]
        if content["state"] == "failed":
            assert "not finite" in content["error"]
            assert str(run) in first.replace("sweeps/some", str(tmp_path / "sweeps" / "some"))
        else:
            assert 0 <= content["metrics"]["last"]["val_acc"] <= 1
    before = {run: (run / "train.log").read_bytes() for run in folders}
    again = train(*command, cwd=tmp_path, code=1)
    assert "2 failed, left alone" in again
    assert before == {run: (run / "train.log").read_bytes() for run in folders}
    retried = train(*command, "sweep.retry=true", cwd=tmp_path, code=1)
    assert "2 failed, to be run again" in retried
    changed = [run for run in folders if (run / "train.log").read_bytes() != before[run]]
    assert sorted(status(run)["state"] for run in changed) == ["failed", "failed"]


@pytest.mark.slow
def test_a_search_that_was_killed_draws_what_an_undisturbed_one_draws(tmp_path):
    pytest.importorskip("optuna")
    search = ("sweep=tpe", *QUICK, "quant=bcgd_w1a4", "sweep.trials=4")
    process = start(*search, "sweep.name=killed", cwd=tmp_path)
    wait_for(lambda: len(finished(tmp_path / "sweeps" / "killed")) >= 2)
    kill_group(process)
    assert "of 4 trials begun before" in train(*search, "sweep.name=killed", cwd=tmp_path)
    train(*search, "sweep.name=whole", cwd=tmp_path)
    one, other = jobs(tmp_path / "sweeps" / "killed"), jobs(tmp_path / "sweeps" / "whole")
    assert one.keys() == other.keys()
    assert len(one) == 4
    assert all(status(run)["state"] in ("finished", "pruned") for run in one.values())
    again = train(*search, "sweep.name=whole", "sweep.keep=none", cwd=tmp_path)
    assert "4 of 4 trials begun before" in again
    assert not list((tmp_path / "sweeps" / "whole").rglob("*.ckpt"))


@pytest.mark.slow
def test_tuning_gives_every_row_the_same_effort(tmp_path):
    rates = ("optimizer.lr=0.001,0.05", "sweep.tune_seeds=[1,2]")
    train("sweep=tuned", *QUICK, "quant=float,bcgd_w1a4", "seed=1,2,3", *rates, cwd=tmp_path)
    folder = tmp_path / "sweeps" / "tuned"
    told = json.loads((folder / "tuned.json").read_text())
    assert len(told) == 2
    runs = list(jobs(folder).values())
    assert len(runs) == 2 * (2 * 2 + 1)  # values x tuning seeds, and one seed more of the best
    for row, choice in told.items():
        quant = next(part for part in row.split(",") if part.startswith("quant="))
        for values, score in choice["validation"].items():
            assert score == pytest.approx(mean_score(runs, quant, values))
        best = max(choice["validation"].values())
        assert choice["validation"][choice["chosen"]] == best


def mean_score(runs, quant, rate):
    scores = [
        status(run)["metrics"]["last"]["val_acc"]
        for run in runs
        if {quant, rate} <= set(overrides := (run / ".hydra/overrides.yaml").read_text().split())
        and {"seed=1", "seed=2"} & set(overrides)
    ]
    return sum(scores) / len(scores)


@pytest.mark.slow
def test_a_launcher_of_hydra_runs_the_same_jobs(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    own = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    command = ("-m", *QUICK, "quant=float,bcgd_w1a4", "sweep.name=here")
    train(*command, *own, cwd=tmp_path)
    folder = tmp_path / "sweeps" / "here"
    before = finished(folder)
    assert len(before) == 2
    assert "2 finished, skipped" in train(*command, *own, "sweep.keep=selected", cwd=tmp_path)
    kept = [path.parent.name for path in folder.rglob("*.ckpt")]
    assert kept == ["best", "best"]
    assert "2 finished, skipped" in train(*command, cwd=tmp_path)
    assert finished(folder) == before


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sweep=nope", ["sweep=nope", "grid", "tpe"]),
        ("-m seed=1,2 sweep.paralel=2", ["sweep.paralel", "did you mean sweep.parallel"]),
        ("-m seed=1,2 sweep.parallel=0", ["sweep.parallel", ">= 1", "0"]),
        ("-m seed=1,2 resume=x", ["resume=x", "same command again"]),
        ("-m seed=1,x", ["seed", "'x'"]),
        ("sweep=random sweep.method=grid", ["optimizer.lr", "range", "sweep.method=grid"]),
        ("sweep=tuned ~x sweep.tune=[nothing]", ["sweep.tune=nothing"]),
        ("sweep=tuned sweep.tune_seeds=[]", ["sweep.tune_seeds", "[]"]),
        ("-m seed=1,2 sweep.name=..", ["sweep.name", ".."]),
        ("-m seed=1,2 audit_only=true", ["audit_only", "leave it out"]),
        ("-m seed=1,2 hydra.sweep.dir=x/${now:%Y}", ["hydra.sweep.dir", "plain folder"]),
        ("-m seed=1,2 hydra.sweep.dir=/dev/null/x", ["hydra.sweep.dir=/dev/null/x"]),
        ("sweep=mine.yaml", ["sweep=mine.yaml", "is missing"]),
        ("sweep=tpe hydra/launcher=submitit_local", ["sweep.method=tpe", "hydra/launcher"]),
        ("-m seed=1,2 model=timm model.name=regnetx_0002", ["'regnetx_0002'", "regnetx_002"]),
        pytest.param(
            "-m seed=1,2 quant.overrides=[{match:nope*,weight:{bits:4}}]",
            ["match='nope*'", "layer1.0.conv1"],
            marks=pytest.mark.slow,  # PyTorch tells: see test_rehearsal.py
        ),
    ],
)
def test_a_wrong_sweep_is_one_line_and_makes_nothing(command, words, tmp_path):
    words_of = [word for word in command.split() if word != "~x"]
    printed = train(*words_of, cwd=tmp_path, code=2).strip()
    assert "\n" not in printed
    assert all(word in printed for word in words), printed
    assert list(tmp_path.iterdir()) == []


def test_the_list_shows_hashes_and_makes_nothing(tmp_path):
    printed = train("-m", "seed=1,2", "sweep.list=true", cwd=tmp_path)
    assert "2 jobs, code" in printed
    assert "start" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_name_of_a_job_s_folder_can_be_typed_back(tmp_path):
    train("-m", *QUICK, "quant=float,bcgd_w1a4", "seed=1,2", "sweep.name=two", cwd=tmp_path)
    run = next(p for p in jobs(tmp_path / "sweeps" / "two").values() if "bcgd" in p.name)
    relative = run.relative_to(tmp_path)
    assert "is finished" in train(f"resume={relative}", cwd=tmp_path)
    train(*QUICK, "quant=bcgd_w1a4", f"init_from={relative}", "hydra.run.dir=next", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a worker waits two minutes for a folder in use
def test_a_row_is_not_tuned_before_all_of_its_trials_have_ended(tmp_path):
    rates = ("optimizer.lr=0.01,0.05", "sweep.tune_seeds=[1]")
    command = ("sweep=tuned", *QUICK, "quant=float", "seed=1,2", *rates)
    listed = train(*command, "sweep.list=true", cwd=tmp_path)
    name = next(line.split()[0] for line in listed.splitlines() if "lr=0.05" in line)
    train(*command, cwd=tmp_path)
    folder = tmp_path / "sweeps" / "tuned"
    whole = {run.name: finished(folder) for run in folder.iterdir() if run.is_dir()}
    # one trial as a kill leaves it, locked by a process that is still there
    run = jobs(folder)[name]
    broken = status(run) | {"state": "running"}
    (run / "status.json").write_text(json.dumps(broken))
    (folder / "tuned.json").unlink()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout.readline() == "in\n"
    printed = train(*command, cwd=tmp_path, code=1)
    assert "not chosen yet" in printed
    assert not json.loads((folder / "tuned.json").read_text())
    assert status(run)["state"] == "running", "the state of a folder in use is its owner's"
    holder.kill()
    holder.communicate()
    assert "not chosen yet" not in train(*command, cwd=tmp_path)
    assert {run.name for run in folder.iterdir() if run.is_dir()} == set(whole)


HOLD = """
import sys, time
from pathlib import Path
from qat.storage.lock import only_process
with only_process(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(200)
"""


@pytest.mark.slow
def test_a_search_of_another_config_is_another_search(tmp_path):
    pytest.importorskip("optuna")
    search = ("sweep=tpe", *QUICK, "sweep.trials=2")
    train(*search, "quant=bcgd_w1a4", "sweep.keep=none", cwd=tmp_path)
    assert not list((tmp_path / "sweeps").rglob("*.ckpt"))
    assert "0 of 2 trials begun before" in train(*search, "quant=float", cwd=tmp_path)
    assert len(finished(tmp_path / "sweeps" / "tpe")) == 4
    listed = train(*search, "quant=float", "sweep.list=true", cwd=tmp_path)
    assert "2 finished, skipped" in listed


@pytest.mark.slow
def test_a_sweep_whose_fork_server_is_killed_goes_on(tmp_path):
    command = ("-m", *QUICK, "seed=1,2,3", "sweep.name=server")
    process = start(*command, cwd=tmp_path)
    folder = tmp_path / "sweeps" / "server"
    wait_for(lambda: len(finished(folder)) >= 1)
    server = next(r for r in descendants(process.pid) if "forkserver" in r[2])
    os.kill(int(server[0]), signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert "Traceback" not in out + err
    assert "sweep folder" in out
    train(*command, cwd=tmp_path)
    assert len(finished(folder)) == 3


@pytest.mark.slow
def test_sigterm_lets_the_jobs_save_and_tells_what_is_left(tmp_path):
    own = ("model=lenet5", "trainer.max_epochs=200", "warm_start.epochs=1", "training.threads=1")
    process = start("-m", *own, "seed=1,2,3", "sweep.name=stop", "sweep.parallel=2", cwd=tmp_path)
    folder = tmp_path / "sweeps" / "stop"
    wait_for(lambda: len(list(folder.glob("*/checkpoints/last/*.ckpt"))) >= 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "Traceback" not in out + err
    assert "not finished (3 of 3)" in out
    states = sorted(str(status(run)["state"]) for run in jobs(folder).values())
    assert states == ["interrupted", "interrupted"]


@pytest.mark.slow
def test_two_sweeps_in_one_folder_are_one_at_a_time(tmp_path):
    own = ("model=lenet5", "trainer.max_epochs=200", "warm_start.epochs=1", "training.threads=1")
    first = start("-m", *own, "seed=1,2", "sweep.name=one", cwd=tmp_path)
    wait_for(lambda: jobs(tmp_path / "sweeps" / "one"))
    try:
        assert "in use by another process" in train(
            "-m", *own, "seed=1,2", "sweep.name=one", cwd=tmp_path, code=2
        )
    finally:
        kill_group(first)


@pytest.mark.slow
def test_a_sweep_keeps_as_many_checkpoints_as_it_was_asked(tmp_path):
    command = ("-m", *QUICK, "trainer.limit_test_batches=1.0", "seed=1,2", "sweep.name=thin")
    train(*command, "sweep.keep=selected", cwd=tmp_path)
    one, two = jobs(tmp_path / "sweeps" / "thin").values()
    for run in (one, two):
        (kept,) = run.rglob("*.ckpt")
        assert kept.parent.name == "best"
    accuracy = json.loads((one / "summary.json").read_text())["selected"]["test_acc"]
    evaluate, network = ROOT / "scripts" / "evaluate.py", f"model={one}"
    printed = train(network, "latency=[]", cwd=tmp_path, script=evaluate)
    assert f"{accuracy:.4f}" in printed
    refused = train(network, "state=last", cwd=tmp_path, script=evaluate, code=2)
    assert "use state=selected" in refused
    assert "Traceback" not in refused
    # going on beyond the end would begin anew, over what is there
    files = {path: path.read_bytes() for path in one.rglob("*") if path.is_file()}
    longer = ("trainer.max_epochs=9", "resume_allow=[trainer.max_epochs]")
    refused = train(f"resume={one}", *longer, cwd=tmp_path, code=1)
    assert "init_from=RUN" in refused
    assert files == {path: path.read_bytes() for path in one.rglob("*") if path.is_file()}
    # a later call thins what is there, and trains nothing
    before = finished(tmp_path / "sweeps" / "thin")
    assert "2 finished, skipped" in train(*command, "sweep.keep=none", cwd=tmp_path)
    assert finished(tmp_path / "sweeps" / "thin") == before
    assert not [*one.rglob("*.ckpt"), *two.rglob("*.ckpt")]


def test_a_sweep_file_of_the_user_s_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("parameters: {seed: [1, 2], optimizer.lr: [0.1]}\n")
    printed = train("sweep=mine.yaml", "quant=float", "sweep.list=true", cwd=tmp_path)
    assert "sweeps/mine: 2 jobs" in printed
    assert "1 job," in train("sweep=mine.yaml", "seed=3", "sweep.list=true", cwd=tmp_path)
    assert "bcgd_w1a32" in train("-m", "quant=glob(bcgd*)", "sweep.list=true", cwd=tmp_path)


def test_slurm_is_a_launcher_by_name(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    printed = train("hydra/launcher=slurm", "--cfg", "hydra", "-p", "hydra.launcher",
                    cwd=tmp_path)  # fmt: skip
    assert "SlurmLauncher" in printed
    assert "timeout_min: 240" in printed


@pytest.mark.slow
def test_the_sweep_of_weights_and_biases_is_a_run_of_the_command(tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, load_sweep_config

    sweep = load_sweep_config(str(ROOT / "scripts" / "wandb_sweep.yaml"))
    drawn = {
        key: {"value": options["values"][-1] if "values" in options else options["min"]}
        for key, options in sweep["parameters"].items()
    }
    filled = create_sweep_command_args({"args": drawn}) | {"program": [sweep["program"]]}
    words = []
    for word in sweep["command"]:  # as the agent fills it
        words += filled.get(word[2:-1], []) if word.startswith("${") else [word]
    assert words.pop(0) == "train.py"
    offline = [w.replace("offline=false", "offline=true") for w in words]
    assert offline != words
    folder = tmp_path / "run"
    train(*offline, "debug=quick", f"hydra.run.dir={folder}", cwd=tmp_path)
    metric = sweep["metric"]["name"]
    assert metric in (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert has_group(record, "resnet20_digits")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=submitit_local",)])
def test_runs_of_a_sweep_are_one_group(tmp_path, launcher):
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    own = ("logger=wandb", "seed=1,2", "sweep.name=together", "hydra.sweep.dir=place")
    train("-m", *QUICK, *own, *launcher, cwd=tmp_path)
    records = list(tmp_path.glob("place/*/wandb/offline-run-*/run-*.wandb"))
    assert len(records) == 2
    assert all(has_group(record, "place") for record in records)
    assert not any(has_group(record, "another") for record in records)


def has_group(path, name):
    """Whether an offline run of wandb has recorded this group, as its field is serialized."""
    from wandb.proto.wandb_internal_pb2 import RunRecord

    return RunRecord(run_group=name).SerializeToString() in path.read_bytes()
