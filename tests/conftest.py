"""What all tests share: one thread each, rows left to the night, one trained run."""

import copy
import gc
import os
import sys
from types import SimpleNamespace

import pytest
from filelock import FileLock

from support.products import slow_rows, tenth
from support.real_run import SAVING, SMALL, train

# what is imported and collected stays: looked through for garbage again and again, it costs more
# than the imports themselves
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # libraries look at their end for what was never freed


@pytest.fixture(autouse=True, scope="module")
def compiled_by_other_files():
    """What other files have compiled does not count among a file's recompilations."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


def pytest_addoption(parser):
    parser.addoption(
        "--slow-tenth",
        metavar="COMMIT",
        help="of the slow tests only a tenth, which the hash of a commit chooses",
    )


# files of real runs come first: the last one to be begun leaves the other worker alone
FIRST = ("train", "sweep", "commands", "docs")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: not item.nodeid.startswith(tuple(f"tests/{x}/" for x in FIRST)))
    for item in slow_rows(items):
        item.add_marker(pytest.mark.slow)
    if commit := config.getoption("slow_tenth"):
        slow = {i.nodeid: _seconds(i) for i in items if i.get_closest_marker("slow")}
        left = slow.keys() - tenth(slow, commit)
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid in left])
        items[:] = [i for i in items if i.nodeid not in left]


def _seconds(item):
    """What a test may take by its mark; most have none."""
    mark = item.get_closest_marker("timeout")
    return mark.args[0] if mark else 0


@pytest.fixture(autouse=True)
def _runtime_of_its_own():
    """A run inside of this process sets the runtime, as commands may; the next test has its own."""
    from qat.functional.runtime import set_runtime

    with set_runtime():
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tensors here are small; with a thread for each core the workers would only wait."""
    import torch  # not above: the process that only hands out tests needs none

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def looked_for_once():
    """Hydra asks for each of our config files whether its own package has it, too: once here."""
    from hydra._internal.core_plugins.importlib_resources_config_source import (
        ImportlibResourcesConfigSource as OfPackage,
    )

    known = {}

    def remembered(ask):
        def answer(source, path):
            key = (ask.__name__, source.path, path)
            if key not in known:
                known[key] = ask(source, path)
            return known[key]

        return answer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("is_config", "is_group"):
            patch.setattr(OfPackage, name, remembered(getattr(OfPackage, name)))
        yield


@pytest.fixture(autouse=True, scope="session")
def parsed_once():
    """A composition parses some twenty config files in plain Python: each text once here."""
    import yaml
    from omegaconf import omegaconf

    known = {}

    def load(stream, Loader):  # noqa: N803: as PyYAML calls it
        text = stream if isinstance(stream, str) else stream.read()
        if text not in known:
            if text is not stream:
                stream.seek(0)  # its name is in messages
            known[text] = yaml.load(stream, Loader)  # noqa: S506: OmegaConf's own, a safe one
        return copy.deepcopy(known[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omegaconf, "yaml", SimpleNamespace(**{**vars(yaml), "load": load}))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of one finished run of `support.real_run.SMALL`, to be read and not changed."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers
    folder = base / "trained" / "run"
    with FileLock(base / "trained.lock"):
        if not folder.exists():
            folder.parent.mkdir()
            train(*SMALL, SAVING, f"hydra.run.dir={folder}", cwd=folder.parent, cold=True)
    return folder
