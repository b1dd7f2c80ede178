"""Every command block of README.md and docs/: composed and checked by day, run by night.

The runs have fewer epochs, batches and seeds than a page says (`shortened`), and on the pages that
are not about the network (`ANY_NETWORK`) ResNet-20 in place of the default; nothing else of a
command is changed. What a page marks `# needs ...` (a network, a GPU, a cluster, an extra, images)
is composed and checked only.
"""

import ast
import re
import subprocess
import sys
import tomllib
from pkgutil import resolve_name

import pytest

from support import ROOT, environment
from support.pages import PAGES as EVERY_PAGE
from support.pages import (
    blocks,
    commands,
    kind_and_arguments,
    photos,
    stand_ins,
    value_of,
)
from support.real_run import start

# its blocks are walked in test_extending
PAGES = [page for page in EVERY_PAGE if page != "extending"]
SPECS = {
    "export": "qat.commands.export:ExportSpec",
    "evaluate": "qat.commands.evaluate:EvaluateSpec",
    "predict": "qat.commands.predict:PredictSpec",
    "report": "qat.commands.report:ReportSpec",
    "theory": "theory:TheorySpec",
    "affinity": "affinity:AffinityOptions",
    "latency": "latency:LatencySpec",
    "benchmark": "benchmark:BenchmarkSpec",
    "input_rate": "input_rate:InputRateSpec",
    "kernels": "kernels:KernelsSpec",
    "gpu_check": "gpu_check:CheckSpec",
    "notebooks": "notebooks:NotebooksSpec",
    "pages": "pages:PagesSpec",
    "post_training": "post_training:PostTrainingSpec",
}
# what the pages' own images are called; a folder of the reader's, and one that holds a data set
PHOTOS, FOLDER = "photos", "FOLDER"


class Place:
    """A folder as it is for a page's reader, with what the commands before have made in it."""

    def __init__(self, folder):
        self.folder = folder
        self.made = {PHOTOS, "tests/images"}
        photos(folder / PHOTOS)
        (folder / "tests").mkdir()
        (folder / "tests/images").symlink_to(ROOT / "tests/images")

    def find(self, path, command):
        """Assert that a page makes what it goes on to read; a stand-in lies there from now on."""
        parts = path.split("/")
        above = {"/".join(parts[:count]) for count in range(1, len(parts) + 1)}
        below = {name for name in self.made if name.startswith(f"{path}/")}
        assert (above & self.made) or below, f"{command}: nothing on the page makes {path}"
        if not (self.folder / path).exists():
            (self.folder / path).mkdir(parents=True)


def check_train(command, words, place):
    from qat.compose import combinations, composed, conf_folder
    from qat.spec.overrides import with_quoted_paths
    from qat.sweep.command import folder_of, is_sweep, sweep_spec

    own = with_quoted_paths([w for w in words if w not in ("-m", "--help")])
    if (resumed := value_of(own, "resume")) is not None:
        return place.find(resumed, command)
    for key in ("init_from", "distill.teacher", "unlabelled.folder.root"):
        path = value_of(own, key)
        if path is not None and not path.startswith(("torchvision/", "timm/")):
            place.find(path, command)
    if value_of(own, "data.root") == FOLDER and command.needs:
        recipe = value_of(own, "experiment", "")
        stand_ins(place.folder / FOLDER, value_of(own, "data") or recipe.split("_")[1])
    runs, options = _runs_and_options(own)
    if is_sweep(own, multirun="-m" in words):
        spec, name = sweep_spec(options)
        place.made.add(str(folder_of(runs, spec, name)))
        runs = combinations(runs)[-1]  # the others are composed where it runs
    else:
        place.made.add(value_of(own, "hydra.run.dir", "runs/DATE"))
    composed(conf_folder(), runs)


def _runs_and_options(words):
    """What a command says of its runs, and what of its sweep."""
    options = [word for word in words if word.startswith("sweep")]
    return [word for word in words if word not in options], options


def check_script(command, name, words, place):
    from qat.commands.options import read_arguments

    if name == "peers":
        return check_peer(words)
    options = [word for word in words if "=" in word]
    for path in paths_read(name, words):
        place.find(path, command)
    if name == "export":
        place.made.add(value_of(words, "out", f"{value_of(words, 'run')}/export"))
    if name == "report" and value_of(words, "fill") is None:
        place.made.add(value_of(words, "cards", "report"))
    if name in SPECS:
        read_arguments(resolve_name(SPECS[name]), options, example="")


def paths_read(name, words):
    """The paths that a script is asked to read: those without a key, run= and model=.

    Models are names where latency is measured.
    """
    keys = ("run",) if name == "latency" else ("run", "model")
    bare = [word for word in words if "=" not in word and not word.startswith("--")]
    named = [value_of(words, key, "").split(",") for key in keys]
    return [*bare, *(path for paths in named for path in paths if path)]


def check_peer(words):
    from qat.compose import combinations, composed, conf_folder

    own = [w for w in words if not w.startswith(("method=", "folder="))]
    assert value_of(words, "method")
    assert value_of(words, "folder")
    for run in combinations([*own, "quant=float"]):
        composed(conf_folder(), run)


def check_pip(words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[:4] == ["install", "-q", "-c", "constraints.txt"]
    assert words[4] == "-e"
    for extra in re.findall(r"\[(\w+)\]", words[5]):
        assert extra in extras["optional-dependencies"]


# what starts the processes of a run, in front of its command
LAUNCHERS = ("torchrun", "sbatch")


def check_command(command, place):
    kind, words = kind_and_arguments(command)
    if kind == "train":
        check_train(command, words, place)
    elif kind == "pip":
        check_pip(words)
    elif kind in LAUNCHERS:
        place_of = next(n for n, word in enumerate(words) if (ROOT / word).is_file())
        check_train(command, words[place_of + 1 :], place)
    elif kind in ("venv", "pytest", "sphinx-build"):
        known = ([".venv"], ["-q"], ["-W", "-q", "docs", "site"])
        assert words in known
    else:
        check_script(command, kind, words, place)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_composed_and_checked(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    place = Place(tmp_path)
    for block in blocks(page):
        if block.language == "python" and writes_only(block.text):
            exec(compile(block.text, block.page, "exec"), {})
        elif block.language == "bash":
            for command in commands(page, f"```bash\n{block.text}```"):
                check_command(command, place)


def writes_only(text):
    """Whether a block makes what the commands after it read: it asks for the standard library."""
    nodes = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    return bool(names) and {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


# most commands of these name no network, as what they show holds for each; the default one costs
# five times more
ANY_NETWORK = ("estimators", "own_images", "sweeps")


def shortened(page, kind, words):
    """A command's arguments with fewer epochs, batches and seeds."""
    if kind == "train":
        return _shortened_run(words, ["model=resnet20"] if page in ANY_NETWORK else [])
    added = {
        "theory": ["experiment=recurrence"],
        "affinity": ["full=false"],
        "latency": _shortened_latency(words),
        "benchmark": ["rounds=1", "warm_up=1", "batch=8", "mode=float,eager"],
        "input_rate": ["images=40", "rounds=1", "steps=0"],
        "kernels": ["rounds=1"],
        "post_training": ["network=lenet5", "seeds=1", "bits=2", "epochs=1"],
    }.get(kind, [])
    names = {word.partition("=")[0] for word in added if "=" in word}
    return [*(word for word in words if word.partition("=")[0] not in names), *added]


def _shortened_latency(words):
    # a run's files are of one size
    return ["batch=[1]", "rounds=1", *([] if value_of(words, "run") else ["size=[32]"])]


def _shortened_run(words, network):
    whole = ("--help", "audit_only=true")
    if set(words) & set(whole) or value_of(words, "resume"):
        return words
    own = any(word.startswith("model") for word in words)
    words = [re.sub(r"^seed=1,2,.*", "seed=1,2", word) for word in words]
    words = words if own else [*words, *network]
    method = value_of(words, "sweep")
    if method in ("random", "tpe"):
        words = [*words, "sweep.trials=2"]
    if method == "tuned":
        words = [*words, "sweep.tune_seeds=[1]"]
    if method in ("tuned", "grid"):
        words = [*words, "optimizer.lr=0.1"]
    if ("-m" in words or method) and value_of(words, "hydra/launcher") is None:
        words = [*words, "sweep.parallel=2"]
    return words if value_of(words, "debug") else [*words, "debug=quick"]


# the seconds deal them to different tenths of the night, see support.products
LONG = ("comparing", "distillation", "shipping", "sweeps")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.timeout(1300 if p in LONG else 700)) for p in PAGES],
)
def test_every_block_runs_in_the_order_of_its_page(page, tmp_path):
    Place(tmp_path)
    for block in blocks(page):
        if block.language == "python":
            subprocess.run(
                [sys.executable, "-W", "error::DeprecationWarning", "-c", block.text],
                check=True, cwd=tmp_path, env=environment(),
            )  # fmt: skip
        elif block.language == "bash":
            for command in commands(page, f"```bash\n{block.text}```"):
                run_command(page, command, tmp_path)


def run_launched(page, words, folder):
    """What torchrun starts, in the smallest form."""
    script = words.index("train.py")
    own = shortened(page, "train", words[script + 1 :])
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *words[:script],
        str(ROOT / "train.py"),
    ]
    subprocess.run([*launch, *own], check=True, cwd=folder, env=environment(), timeout=900)


def run_command(page, command, folder):
    kind, words = kind_and_arguments(command)
    if kind == "torchrun" and not command.needs:
        return run_launched(page, words, folder)
    if not command.needs and kind not in ("venv", "pip", "pytest", "sphinx-build"):
        script = ROOT / ("train.py" if kind == "train" else f"scripts/{kind}.py")
        process = start(*shortened(page, kind, words), cwd=folder, script=script)
        try:
            out, err = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == 0, f"{command}\n{out}{err}"


def test_what_needs_more_than_a_cpu_says_so():
    marked = [c for page in PAGES for c in commands(page) if c.needs]
    known = ("a network", "a GPU", "GPUs", "a cluster", "the extra", "CIFAR-10", "ImageNet")
    assert all(c.needs.startswith(known) for c in marked)
    for page in PAGES:
        for command in commands(page):
            asks = ("data.download=true", "logger=tensorboard", "hydra/launcher=slurm")
            words = set(command.words)
            if words & {*asks, "model.weights=default"} or value_of(words, "trainer.accelerator"):
                assert command.needs, command


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_compiles_and_names_what_exists(page):
    import qat

    for block in blocks(page):
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and node.module == "qat":
                    assert {alias.name for alias in node.names} <= set(qat.__all__), block
