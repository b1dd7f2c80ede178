"""The contact sheet: which images are on it, where, and what becomes of it when something fails."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qat.commands import predict, sheet
from qat.commands.predict import Prediction
from qat.commands.sheet import LeastCertain
from qat.errors import DataError, SpecError
from qat.spec.header import Preprocessing


class Network:
    """The redder an image, the surer it is of `red`, from 0.5 of a black one to 0.9."""

    preprocessing = Preprocessing(
        channels=3, size=8, mean=(0.0,) * 3, std=(1.0,) * 3, classes=("blue", "red"), upright=True
    )

    def logits(self, images):
        share = 0.5 + 0.4 * images[:, 0].mean((1, 2))
        return torch.stack([1 - share, share], dim=1).log()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten images in nested folders, from nearly black 0 to red 9; a stand-in for a network."""
    for number in range(10):
        place = tmp_path / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (28 * number, 0, 0)).save(place / f"{number}.png")
    (tmp_path / "x.safetensors").touch()
    monkeypatch.setattr("qat.commands.network.open_network", lambda _, **options: Network())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*options):
    predict.main(["photos", "model=x.safetensors", *options])


def prediction(share, name="a"):
    return Prediction(Path(name), (("cat", share), ("dog", 1 - share)))


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_the_least_certain_are_those_of_a_sorted_list(most):
    draw = random.Random(most)
    shares = [draw.choice((0.5, 0.6, 0.7, draw.random())) for _ in range(50)]
    least = LeastCertain(most)
    for number, share in enumerate(shares):
        least.add(prediction(share, str(number)))
        least.add(Prediction(Path("bad"), error="no image"))
        assert len(least._heap) <= most
    wanted = sorted(range(50), key=lambda number: (shares[number], number))[:most]
    assert [int(p.path.name) for p in least.found] == wanted
    assert least.seen == 50


def test_the_sheet_shows_the_least_certain_first(folder, capsys):
    run("sheet=s.png", "least=3", "top=2", "out=a.csv")
    assert "s.png: the 3 least certain of 10 images" in capsys.readouterr().out
    picture = np.asarray(Image.open("s.png"))
    middle = sheet._MARGIN + sheet._TITLE + sheet._SIDE // 2
    for column in range(3):
        left = sheet._MARGIN + column * (sheet._SIDE + sheet._GAP)
        assert picture[middle, left + sheet._SIDE // 2].tolist() == [28 * column, 0, 0]
        # whole, not cut: an image that is wider than high leaves paper above
        assert picture[middle - sheet._SIDE // 2 + 2, left + 9].tolist() == [0xEE, 0xF0, 0xF3]
    assert picture.shape[0] == 2 * sheet._MARGIN + sheet._TITLE + sheet._SIDE + sheet._CAPTION
    assert Path("a.csv").read_text().count("\n") == 21


def test_a_bar_is_as_long_as_the_probability(folder):
    run("sheet=s.png", "least=1")
    picture = np.asarray(Image.open("s.png"))
    bar = picture[sheet._MARGIN + sheet._TITLE + sheet._SIDE + 7, sheet._MARGIN :]
    blue = (bar[: sheet._SIDE] == [0x2F, 0x6F, 0x9F]).all(1).sum()
    assert blue / sheet._SIDE == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("count", [1, 6, 7, 13])
def test_any_number_fits(folder, count):
    run("sheet=s.png", f"least={count}")
    width, height = Image.open("s.png").size
    assert width > 500
    rows = -(-min(count, 10) // 6)
    assert height == 2 * sheet._MARGIN + sheet._TITLE + rows * 264 - sheet._GAP


def test_images_stand_upright_and_any_shape_is_shown(folder):
    turned = Image.new("RGB", (40, 20))
    turned.paste((0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[274] = 6  # what is left lies above once it is turned
    turned.save("photos/0.png", exif=exif)
    Image.new("RGB", (3000, 1)).save("photos/00.png")
    os.truncate("photos/a/0.png", 40)
    with pytest.raises(DataError, match="1 of 12 files"):
        run("sheet=s.png", "least=2")
    picture = np.asarray(Image.open("s.png"))
    column = picture[sheet._MARGIN + sheet._TITLE :, sheet._MARGIN + sheet._SIDE // 2]
    assert column[10].tolist() == [0, 0, 255]
    assert column[sheet._SIDE - 10].tolist() == [0, 0, 0]


def test_names_that_no_font_can_draw(folder):
    for name in (b"a\xff.png", "名前.png".encode(), b"\x1b[2J" + b"long" * 40 + b".png"):
        Image.new("RGB", (9, 9)).save(os.fsencode("photos/") + name)
    run("sheet=s.png", "least=4")
    assert Image.open("s.png").size[1] > 100


def test_long_texts_lose_their_middle():
    font = sheet._font(11, False)
    short = sheet._fitted("begin" + "x" * 500 + "end", font, 120)
    assert font.getlength(short) <= 120
    assert short.startswith("begin")
    assert short.endswith("end")
    assert sheet._fitted("short", font, 120) == "short"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["sheet=s.jpg"], r"sheet=s\.jpg must end in \.png"),
        (["sheet=none/s.png"], r"sheet=none/s\.png must be a file, new or to be replaced"),
        (["sheet=photos/a/0.png"], r"sheet=photos/a/0\.png is what the command reads"),
        (["sheet=a.png", "out=a.png"], r"sheet=a\.png is what the command reads or writes already"),
        (["sheet=s.png", "least=0"], "least must be"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(folder, options, words):
    before = sorted(folder.rglob("*"))
    with pytest.raises(SpecError, match=words):
        run(*options)
    assert sorted(folder.rglob("*")) == before


def test_a_sheet_is_whole_or_not_there(folder, monkeypatch):
    Path("s.png").write_bytes(b"the old one")

    def full(self, file, kind):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=r"cannot write sheet=s\.png: No space left"):
        run("sheet=s.png")
    assert Path("s.png").read_bytes() == b"the old one"
    assert not list(folder.glob(".s.png*"))


def test_no_image_no_sheet(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="10 of 10 files"):
        run("sheet=s.png")
    assert not Path("s.png").exists()
