"""Missing data: one sentence, early, without torch; and the config files of all families."""

import subprocess
import sys

import pytest
import yaml

from qat.data.registry import build_data
from qat.errors import DataError, SpecError
from qat.spec.data import FAMILIES, DataSpec, options_of
from qat.spec.data_files import check_data
from qat.spec.schema import read
from support import ROOT

CONF = ROOT / "conf" / "data"
TITLES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
    "imagenet": "ImageNet",
    "image_folder": "your image folder",
}


@pytest.mark.parametrize("name", TITLES)
def test_the_sentence(tmp_path, name):
    root = tmp_path / "nothing"
    data = build_data(DataSpec(name=name, root=str(root)))
    for attempt in (data.check, data.prepare, data.setup):
        with pytest.raises(DataError) as caught:
            attempt()
        message = str(caught.value)
        assert message.startswith(f"data={name}: {TITLES[name]} is not in data.root={root} (no ")
        cure = "data.root=<folder> that holds" if name.startswith("image") else "data.download=true"
        assert cure in message
        assert "\n" not in message


def test_the_default_root_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"data\.root={tmp_path}/datasets \(no {tmp_path}/data"):
        check_data(DataSpec(name="cifar10"))


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=rf"{tmp_path}/sets"):
        check_data(DataSpec(name="cifar10", root="~/sets"))


def test_an_incomplete_set_is_missing(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "batches.meta").touch()
    with pytest.raises(DataError, match=r"\(no .*/cifar-10-batches-py/test_batch\)"):
        check_data(DataSpec(name="cifar10", root=str(tmp_path)))


def test_image_folder_needs_a_root():
    with pytest.raises(SpecError, match=r"data\.root must be given for data=image_folder; set"):
        check_data(DataSpec(name="image_folder"))


def test_folders_without_classes(tmp_path):
    (tmp_path / "a.png").touch()
    options = DataSpec(name="image_folder", root=str(tmp_path))
    with pytest.raises(DataError, match="at least 2 class folders, has 0; put the images"):
        check_data(options)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has a folder train, but no folder val"):
        check_data(options)


def test_a_file_as_root(tmp_path):
    (tmp_path / "a.zip").touch()
    with pytest.raises(DataError, match=r"a\.zip cannot be listed"):
        check_data(DataSpec(name="image_folder", root=str(tmp_path / "a.zip")))


def test_digits_and_downloads_pass():
    check_data(DataSpec())
    check_data(DataSpec(name="cifar10", root="/nowhere", download=True))
    with pytest.raises(DataError, match="image-net"):
        check_data(DataSpec(name="imagenet", root="/nowhere", download=True))


def test_the_check_needs_no_torch():
    code = (
        "import sys; from qat.spec.data import DataSpec; from qat.spec.data_files import *\n"
        "check_data(DataSpec())\n"
        "print([m for m in ('torch', 'lightning', 'torchvision', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_family_has_its_config():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(FAMILIES)
    for name in FAMILIES:
        text = (CONF / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        values = yaml.safe_load(text)
        assert list(values) == list(options_of(name))
        assert read(DataSpec, values, "data").name == name
