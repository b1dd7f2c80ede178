"""What a network is judged on must be what it was trained for."""

import numpy as np
import pytest
import torch
from PIL import Image

from qat.commands.answers import Answers, check_fits, latencies
from qat.commands.predict import _images
from qat.compose import composed_data, conf_folder
from qat.data.folders import ImageNet
from qat.data.module import preprocessing_of
from qat.data.registry import build_data
from qat.data.transforms import from_file
from qat.errors import DataError, SpecError
from qat.spec.data import DataSpec
from qat.spec.header import Preprocessing
from support.image_folders import write_pictures


def digits(**options):
    return build_data(DataSpec(**options))


def test_the_images_of_other_data_are_refused():
    data = digits()
    own = preprocessing_of(data, data.classes)
    check_fits(own, data)
    with pytest.raises(SpecError, match="pixels a side 8, data=digits has 12"):
        check_fits(own, digits(image_size=12))
    others = {
        "normalised by mean": {"mean": (0.5,)},
        "classes 10 with a, b, c ..., data=digits has 10 with 0, 1, 2 ...;": {
            "classes": tuple("abcdefghij")
        },
    }
    for message, change in others.items():
        fields = {name: getattr(own, name) for name in Preprocessing.__dataclass_fields__}
        with pytest.raises(SpecError, match=message):
            check_fits(Preprocessing(**{**fields, **change}), data)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (64, 64)])
def test_image_files_meet_the_transform_of_their_data(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    centre = ImageNet(DataSpec(name="imagenet", image_size=28))
    shared = {"channels": 3, "size": 28, "mean": centre.mean, "std": centre.std}
    crop = from_file(Preprocessing(**shared, crop="centre", classes=("a",)))
    assert torch.equal(crop(image), centre.evaluation_transform()(image))
    whole = from_file(Preprocessing(**shared, crop="whole", classes=("a",)))(image)
    assert whole.shape == (3, 28, 28)
    if size != (64, 64):  # of a square image both see the middle, or all of it
        assert not torch.equal(whole, crop(image))


def test_options_of_the_data_are_kept_unless_said_otherwise(tmp_path):
    write_pictures(tmp_path, {"cat": 1, "dog": 1})
    base = DataSpec(image_size=12, batch_size=33, root="a folder, of mine")
    found = composed_data(conf_folder(), ["data.batch_size=7"], base)
    assert (found.image_size, found.batch_size, found.root) == (12, 7, "a folder, of mine")
    assert composed_data(conf_folder(), ["data=digits"], base).image_size is None
    own = DataSpec(name="image_folder", root=str(tmp_path), image_size=12)  # an old run's
    found = composed_data(conf_folder(), ["data=image_folder", f"data.root={own.root}"], own)
    assert (found.split, found.upright, found.image_size) == ("index", False, None)
    with pytest.raises(DataError, match="MNIST"):
        composed_data(conf_folder(), [], DataSpec(name="mnist", root="/nowhere"))
    with pytest.raises(SpecError, match=r"data\.batch_size"):
        composed_data(conf_folder(), ["data.batch_size=0"], base)


def test_answers_and_latencies():
    answers = Answers(torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0, 0]))
    assert answers.classes.tolist() == [1, 0, 1]
    assert answers.accuracy == pytest.approx(2 / 3)
    calls = []

    def network(image):
        calls.append(tuple(image.shape))
        return image

    found = latencies({"a": network, "b": network}, (1, 2, 2), batch=3, rounds=4)
    assert calls == [(3, 1, 2, 2)] * 2 * (4 + 2)
    assert 0 < found["a"].fastest <= found["a"].median


def test_predict_lists_the_files_that_training_would(tmp_path):
    write_pictures(tmp_path / "real", {"cat": 1, "dog": 1})
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "link").symlink_to(tmp_path / "real")
    for name in ("a.GIF", "b.webp", ".hidden.png", "c.txt", "d.pfm"):
        (tmp_path / "t" / name).touch()
    (tmp_path / "t" / ".folder").mkdir()
    (tmp_path / "t" / ".folder" / "e.png").touch()
    found = [str(path.relative_to(tmp_path / "t")) for path in _images([tmp_path / "t"])]
    assert found == ["a.GIF", "b.webp", "link/cat/000.png", "link/dog/000.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none holds no image file \(\.jpg .*\); give another"):
        list(_images([tmp_path / "none"]))
