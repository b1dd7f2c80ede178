"""What launchers say of a process: its place, and what a command may ask for beside it."""

import pytest

from qat.errors import SpecError
from qat.launch.join import adopted, meeting
from qat.ranks.place import Place

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "3",
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "1234", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_LOCALID": "1",
    "SLURM_NODELIST": "node[07-08]",
}  # fmt: skip
TWO_BY_FOUR = meeting(TORCHRUN)


def test_a_process_of_torchrun():
    place = Place(rank=5, size=8, local_rank=1, local_size=4, node=1, nodes=2)
    assert meeting(TORCHRUN) == (place, "env://", 1, 3)


def test_a_process_of_srun():
    found = meeting(SLURM)
    assert found.place == Place(rank=3, size=4, local_rank=1, local_size=2, node=1, nodes=2)
    assert found.method == "tcp://node07:16234"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # a job script, before srun: nothing has been started
        {k: v for k, v in SLURM.items() if "STEP" not in k},
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["plain", "sbatch", "srun of one"],
)
def test_a_process_alone(environment):
    assert meeting(environment) is None


def test_a_process_of_torchrun_that_is_alone_may_be_restarted_too():
    one = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "GROUP_RANK": "0"}
    found = meeting({**TORCHRUN, **one, "LOCAL_RANK": "0"})
    assert found.place == Place()
    assert adopted(found, {"devices": 1}, ["hydra.run.dir=x"]) == []
    with pytest.raises(SpecError, match=r"give hydra\.run\.dir=FOLDER"):
        adopted(found, {"devices": 1}, [])


def test_nodes_by_other_names():
    job = {k: v for k, v in SLURM.items() if k != "SLURM_NODELIST"}
    assert meeting({**job, "SLURM_JOB_NODELIST": "a[3-4]"}).method.startswith("tcp://a3:")


def test_uneven_nodes_are_refused():
    with pytest.raises(SpecError, match="--ntasks-per-node"):
        meeting({**SLURM, "SLURM_STEP_NUM_TASKS": "3"})


def test_a_command_says_nothing_of_processes_and_takes_those_that_there_are():
    own = adopted(TWO_BY_FOUR, {"devices": 1}, ["hydra.run.dir=x"])
    assert own == ["trainer.devices=4", "trainer.num_nodes=2"]


@pytest.mark.parametrize("devices", [4, "auto"])
def test_a_config_that_agrees_is_left_as_it_is(devices):
    assert adopted(TWO_BY_FOUR, {"devices": devices, "num_nodes": 2}, ["resume=x"]) == []


def test_another_number_of_processes_is_refused():
    with pytest.raises(SpecError, match=r"trainer\.devices=8 .*4 processes on each of 2 machines"):
        adopted(TWO_BY_FOUR, {"devices": 8}, ["trainer.devices=8", "hydra.run.dir=x"])


def test_a_restart_that_would_not_find_its_run_is_refused():
    with pytest.raises(SpecError, match=r"give hydra\.run\.dir=FOLDER"):
        adopted(TWO_BY_FOUR, {"devices": 4, "num_nodes": 2}, [])


def test_several_machines_without_a_launcher_are_refused():
    with pytest.raises(SpecError, match=r"trainer.num_nodes=2.*torchrun.*docs/devices\.md"):
        adopted(None, {"num_nodes": 2}, [])
