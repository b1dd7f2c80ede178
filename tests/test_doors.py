"""Every door of the commands, with contents that no file of ours has.

What a command opens is replaced by each of `support.contents`, and the real command is run. Nothing
is executed, nothing hangs, nothing takes 2 GiB, no traceback is printed, and what is refused leaves
no output. By day one content at each door, by night all of them.
"""

import json
import shutil
from dataclasses import dataclass

import pytest
from filelock import FileLock
from PIL import Image

from qat.commands import export
from support import ROOT
from support.contents import CONTENTS, MARK, put
from support.image_folders import write_pictures
from support.real_run import PLAIN, warm_server
from support.warm import WarmCommand

SCRIPT = {
    name: ROOT / "scripts" / f"{name}.py" for name in ("evaluate", "export", "predict", "report")
} | {"train": ROOT / "train.py"}
MOST_SECONDS, MOST_BYTES = 60, 2 << 30
IMAGE = str(ROOT / "tests" / "images" / "digit_3.png")
QUICK = ["model=lenet5", "debug=quick", "training.threads=1", *PLAIN, "hydra.run.dir=made"]
MORE = ["trainer.max_epochs=5", "resume_allow=[trainer.max_epochs]", "training.threads=1"]
JUDGED = ["latency=[]", "threads=1"]


@dataclass(frozen=True, slots=True)
class Door:
    """A command, and the file that is another one than it should be.

    Attributes:
        path: of that file, in the folder where the command runs.
        script: of the command.
        words: its arguments.
        is_read: whether the command cannot do without it, so that it has to refuse.
        makes: what it leaves if it ends well.
    """

    path: str
    script: str
    words: tuple[str, ...]
    is_read: bool = True
    makes: str = "made"


def model_doors():
    packed, onnx, checkpoint = "net.safetensors", "net.onnx", "net.ckpt"
    for path in (packed, onnx):
        yield Door(path, "evaluate", (f"model={path}", *JUDGED))
        yield Door(path, "predict", (IMAGE, f"model={path}", "out=made"))
    for path in (packed, checkpoint, "net.pt"):
        yield Door(path, "train", (f"init_from={path}", *QUICK))
    for path in (checkpoint, packed):
        teacher = ["distill=kd", f"distill.teacher={path}", "model@distill.teacher_model=lenet5"]
        yield Door(path, "train", (*teacher, *QUICK))


def image_doors():
    yield Door("photo.png", "predict", ("photo.png", "model=net.safetensors"))
    folder = ["data=image_folder", "data.root=photos", "data.image_size=32", "data.scan=all"]
    yield Door("photos/cat/000.png", "train", (*folder, *QUICK))


RUN_FILES = (
    ".hydra/config.yaml", ".hydra/overrides.yaml", "status.json", "summary.json", "metrics.csv",
    "layers.csv", "histograms.csv", "data.json.gz", "checkpoints/best", "checkpoints/last",
)  # fmt: skip
RUN_DOORS = {
    "evaluate": ("model=run", *JUDGED),
    "export": ("run=run", "out=made"),
    "predict": (IMAGE, "model=run", "out=made"),
    "report": ("run", "out=made"),
    "resume": ("resume=run", *MORE),
    "teacher": ("distill=kd", "distill.teacher=run", *QUICK),
    "init_from": ("init_from=run", *QUICK),
}


def run_cases():
    """Each file of a run folder with each content, at each door in turn."""
    for number, file in enumerate(RUN_FILES):
        for turn, content in enumerate(CONTENTS):
            name = list(RUN_DOORS)[(number + turn) % len(RUN_DOORS)]
            script = name if name in SCRIPT else "train"
            yield Door(f"run/{file}", script, RUN_DOORS[name], is_read=False), content


CASES = [
    *((door, content) for door in (*model_doors(), *image_doors()) for content in CONTENTS),
    *run_cases(),
]


def by_day():
    """Numbers of one case of each door, with one content after the other."""
    found = {}
    for number, (door, content) in enumerate(CASES):
        place = (door.path, door.script) if door.is_read else door.script
        if content == CONTENTS[(5 * len(found) + 2) % len(CONTENTS)]:
            found.setdefault(place, number)
    return set(found.values())


def cases():
    day, found = by_day(), []
    for number, (door, content) in enumerate(CASES):
        words = f"{door.script} {door.path} {content}"
        marks = () if number in day else pytest.mark.slow
        found.append(pytest.param(door, content, marks=marks, id=f"{words} {number}"))
    return found


def test_there_are_three_hundred():
    assert len(CASES) >= 300
    assert len(by_day()) >= 8


@pytest.fixture(scope="session")
def material(trained, tmp_path_factory):
    """A folder with one good file of each kind."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if base.name.startswith("popen-") else base
    folder = base / "material"
    with FileLock(base / "material.lock"):
        if not folder.exists():
            part = base / "material.part"
            shutil.copytree(trained, part / "run")
            export.main([f"run={part}/run", f"out={part}/out"])
            export.main([f"run={part}/run", f"out={part}/out", "format=onnx", "form=fast"])
            (part / "out" / "packed.safetensors").rename(part / "net.safetensors")
            (part / "out" / "fast.onnx").rename(part / "net.onnx")
            shutil.rmtree(part / "out")
            newest = max((part / "run/checkpoints/best").glob("*.ckpt"))
            for name in ("net.ckpt", "net.pt"):
                shutil.copy(newest, part / name)
            Image.open(IMAGE).save(part / "photo.png")
            write_pictures(part / "photos", {"cat": 8, "dog": 8})
            part.rename(folder)
    return folder


def named(path):
    """The file of a door; of a folder of checkpoints the newest."""
    return max(path.glob("*.ckpt")) if path.is_dir() and path.name in ("best", "last") else path


def peak_after(words, script, cwd):
    """Exit code, output, errors and the peak of memory, in bytes, of a command."""
    process = WarmCommand(
        warm_server(), SCRIPT[script], words, cwd, {"PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    )
    try:
        out, err = process.communicate(timeout=MOST_SECONDS)
    except Exception:
        process.kill()
        raise
    return process.returncode, out, err, process.peak


@pytest.mark.parametrize(("door", "content"), cases())
def test_what_is_none_of_ours_does_no_harm(door, content, material, tmp_path):
    here = tmp_path / "here"
    shutil.copytree(material, here)
    place = named(here / door.path)
    put(content, place, place.read_bytes())
    before = set(here.rglob("*"))

    code, out, err, peak = peak_after(door.words, door.script, here)

    assert code in (0, 1, 2), err
    assert "Traceback" not in out + err
    assert all(line.isprintable() for line in (out + err).replace("\r", "").split("\n")), err
    assert peak < MOST_BYTES
    assert not (here / MARK).exists()
    made = set(here.rglob("*")) - before
    assert not [path for path in made if path.name.endswith(".part")]
    if code:
        last = err.rstrip("\n").split("\n")[-1]
        assert last.startswith("error: "), err
        assert not [path for path in made if is_output(path, door)], made
    elif door.is_read:
        assert content in HARMLESS.get(place.suffix, ()), out


# what a reader may take for a good file
HARMLESS = {
    # weights from elsewhere, without a sum; torch and Pillow read to their end and no further
    ".pt": ("all but a byte", "twice", "turned bits 0", "turned bits 1", "turned bits 2"),
    ".png": ("all but a byte", "twice"),
}


def is_output(path, door):
    """Whether a file would be taken for the result of a command that ended well."""
    if door.script == "train":
        status = path.parent / "status.json"
        is_done = path.name == "status.json" and json.loads(path.read_text())["state"] == "finished"
        return is_done or (path.name in ("summary.json", "report.html") and status.exists())
    return door.script != "report" or path.name == "index.html"
