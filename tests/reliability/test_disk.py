"""A disk that is full or cannot be written: one line, and what was saved can be gone on with."""

import pytest

from support.real_run import PLAIN, SAVING, SMALL, differences, kill_after, train

RUN = (*SMALL, SAVING, *PLAIN)
# a limit of the size of files, which needs no disk of its own; checkpoints are larger
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
from qat.commands.train import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_full_disk(devices, tmp_path):
    whole, folder, script = tmp_path / "whole", tmp_path / "run", tmp_path / "full.py"
    run = (*RUN, "trainer.accelerator=cpu", f"trainer.devices={devices}")
    train(*run, f"hydra.run.dir={whole}", cwd=tmp_path)
    kill_after(20, folder, *run, cwd=tmp_path)
    script.write_text(FULL)
    before = {path: path.read_bytes() for path in folder.rglob("*.ckpt")}
    assert all(len(content) > 60_000 for content in before.values())
    said = train(f"resume={folder}", cwd=tmp_path, code=1, script=script)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "File too large; free space or choose another folder" in errors[0]
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in folder.rglob("*.ckpt")} == before
    assert not list(folder.rglob("*.part"))
    train(f"resume={folder}", cwd=tmp_path)
    assert differences(folder, whole) == []
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/proc/qat/run", "file/run"])
def test_a_folder_that_cannot_be_made(place, tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = train(*RUN, f"hydra.run.dir={place}", cwd=tmp_path, code=2)
    assert "Traceback" not in said
    last = said.rstrip().splitlines()[-1]
    assert last.startswith("error: ")
    assert f"hydra.run.dir={place}: " in last
    assert (tmp_path / "file").read_text() == "in the way"
