"""The synthetic letters: which fonts, which pictures, what is kept, what is refused."""

import dataclasses
import hashlib
import json
import logging
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from qat.compose import checked, composed_data, conf_folder
from qat.data.glyphs import drawing, fonts, glyphs
from qat.data.glyphs.drawing import SIDE, Ranges, draw
from qat.data.glyphs.fonts import CANVAS, CAPITAL, FACES, font_files, shapes
from qat.data.glyphs.glyphs import cache_path, generated
from qat.data.registry import build_data
from qat.data.sampler import derived_seed
from qat.errors import DataError, SpecError
from qat.spec.data import CLASSES, DataSpec, GlyphsSpec
from support.products import mostly_slow
from support.real_run import train

SMALL = GlyphsSpec(train=60, validation=26, test=40)
STILL = Ranges(
    turn=0, shear=0, stretch=0, perspective=0, shift=0, contrast=0.5, gradient=0, texture=0,
    blur=0, noise=0,
)  # fmt: skip


def letters(root, options=SMALL, seed=0, **others):
    data = build_data(DataSpec(name="glyphs", root=str(root), glyphs=options, **others), seed=seed)
    data.prepare()
    return data


def cover(shape, ranges, seed=0):
    """Ink of a picture, found from its two colours."""
    picture = draw(shape, ranges, generator=np.random.default_rng(seed)).astype(float)
    paper = picture[:, 0, 0][:, None, None]
    distance = np.abs(picture - paper).sum(0)
    return distance / distance.max()


def centre(weights):
    rows, columns = np.indices(weights.shape)
    total = weights.sum()
    return (weights * columns).sum() / total, (weights * rows).sum() / total


# --- fonts


def test_no_typeface_is_in_two_parts():
    families = {
        part: {ImageFont.truetype(file).getname()[0] for file in font_files(part)} for part in FACES
    }
    assert families == {
        "train": {"DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif"},
        "validation": {"STIXGeneral"},
        "test": {"cmr10", "cmb10", "cmti10", "cmss10", "cmtt10"},
    }


@pytest.mark.parametrize(
    "file", [f for part in FACES for f in font_files(part)], ids=lambda f: f.stem
)
def test_shapes(file):
    masks = shapes(file)
    assert (masks.shape, masks.dtype) == ((26, CANVAS, CANVAS), np.uint8)
    assert len({mask.tobytes() for mask in masks}) == 26  # a missing letter would be a box, twice
    rows = np.flatnonzero(masks[CLASSES.index("H")].max(1) > 127)
    assert abs(rows[-1] - rows[0] + 1 - CAPITAL) <= 2
    for mask in masks:
        assert mask.max() == 255
        for axis in (0, 1):
            inside = np.flatnonzero(mask.max(axis))
            assert 0 < inside[0] <= inside[-1] < CANVAS - 1  # not cut off
            assert abs((inside[0] + inside[-1] + 1) / 2 - CANVAS / 2) <= 0.5


def test_fonts_without_the_letters_are_refused(monkeypatch):
    folder = font_files("train")[0].parent
    with pytest.raises(DataError, match=r"DejaVuSansDisplay\.ttf lacks ABC"):
        shapes(folder / "DejaVuSansDisplay.ttf")
    monkeypatch.setitem(FACES, "test", ("cmr11",))
    with pytest.raises(DataError, match=r"needs the font .*cmr11\.ttf; reinstall"):
        font_files("test")


# --- one picture


def test_without_distortion_a_picture_is_its_letter_in_two_colours():
    for label, shape in enumerate(shapes(font_files("test")[0])):
        picture = draw(shape, Ranges.of(0), generator=np.random.default_rng(label))
        assert (picture.shape, picture.dtype) == ((3, SIDE, SIDE), np.uint8)
        # a H of 64 of 128 pixels becomes one of 19 of 32: the middle 64 * 32 / 19 pixels are seen
        half = CAPITAL * SIDE / 19 / 2
        box = (CANVAS / 2 - half, CANVAS / 2 - half, CANVAS / 2 + half, CANVAS / 2 + half)
        expected = Image.fromarray(shape).resize((SIDE, SIDE), Image.Resampling.BOX, box)
        found = cover(shape, Ranges.of(0), label)
        assert np.abs(found - np.asarray(expected) / 255).mean() < 0.02
        colours = picture.reshape(3, -1).T.astype(float)
        spread = np.linalg.svd(colours - colours.mean(0), compute_uv=False)
        assert spread[1] < 0.02 * spread[0]  # on the line between paper and ink


@pytest.mark.parametrize("seed", range(5))
def test_shift_and_turn_are_what_they_say(seed):
    bar = np.zeros((CANVAS, CANVAS), np.uint8)
    bar[32:96, 60:68] = 255  # upright, in the middle
    draws = np.random.default_rng(seed).uniform(-1, 1, 8)
    x, y = centre(cover(bar, dataclasses.replace(STILL, shift=0.2), seed))
    middle = (SIDE - 1) / 2
    assert x - middle == pytest.approx(0.2 * SIDE * draws[4], abs=0.1)
    assert y - middle == pytest.approx(0.2 * SIDE * draws[5], abs=0.1)
    turned = cover(bar, dataclasses.replace(STILL, turn=40), seed)
    rows, columns = np.indices(turned.shape) - middle
    xx, yy, xy = ((turned * m).sum() for m in (columns**2, rows**2, columns * rows))
    # rows grow downwards: an upright bar that is turned clockwise has its top to the right
    angle = math.degrees(0.5 * math.atan2(-2 * xy, yy - xx))
    assert angle == pytest.approx(40 * draws[0], abs=2)


@pytest.mark.parametrize("seed", range(3))
def test_stretch_shear_and_perspective_are_what_they_say(seed):
    block = np.zeros((CANVAS, CANVAS), np.uint8)
    block[44:84, 44:84] = 255
    plain = cover(block, STILL, seed)
    draws = np.random.default_rng(seed).uniform(-1, 1, 8)
    stretched = cover(block, dataclasses.replace(STILL, stretch=0.5), seed)
    for axis, number in ((0, 2), (1, 3)):  # the widest row, the highest column
        ratio = stretched.sum(1 - axis).max() / plain.sum(1 - axis).max()
        assert ratio == pytest.approx(math.exp(0.5 * draws[number]), rel=0.04)
    sheared = cover(block, dataclasses.replace(STILL, shear=0.5), seed)
    assert sheared.sum() == pytest.approx(plain.sum(), rel=0.02)  # areas stay
    tops, bottoms = (centre(part)[0] for part in (sheared[:14], sheared[18:]))
    assert (bottoms > tops) == (draws[1] < 0)
    tilted = cover(block, dataclasses.replace(STILL, perspective=0.5), seed)
    halves = tilted[:, : SIDE // 2].sum(), tilted[:, SIDE // 2 :].sum()
    # the letter is looked up at x / (1 + p x), so it is larger where the product is positive
    assert (halves[0] < halves[1]) == (draws[6] > 0)


def test_ranges_grow_with_difficulty():
    steps = [dataclasses.asdict(Ranges.of(difficulty)) for difficulty in (0, 0.25, 0.5, 1)]
    for name in steps[0]:
        values = [step[name] for step in steps]
        assert values == sorted(values, reverse=name == "contrast")
        assert values[3] - values[0] == pytest.approx(4 * (values[1] - values[0]))
        assert values[0] == (0.6 if name == "contrast" else 0)


@given(st.floats(0, 1), st.integers(0, 2**32))
def test_ink_is_the_first_colour_with_enough_contrast(contrast, seed):
    base = np.random.default_rng(seed + 1).uniform(0.1, 0.9, 3)
    found = drawing._ink(base, contrast, np.random.default_rng(seed))

    def brightness(colour):
        red, green, blue = colour
        return 0.299 * red + 0.587 * green + 0.114 * blue

    inks = np.random.default_rng(seed).random((16, 3)).tolist()
    distances = [abs(brightness(ink) - brightness(base)) for ink in inks]
    enough = [number for number, distance in enumerate(distances) if distance >= contrast]
    expected = inks[enough[0]] if enough else inks[distances.index(max(distances))]
    assert found.tolist() == expected


# --- all pictures


def test_every_picture_depends_on_its_own_seed_alone():
    every = generated(SMALL)
    assert (every.shape, every.dtype) == ((126, 3, SIDE, SIDE), np.uint8)
    assert len({picture.tobytes() for picture in every}) == 126
    larger = generated(dataclasses.replace(SMALL, train=100))
    assert np.array_equal(larger[:60], every[:60])
    assert np.array_equal(larger[100:], every[60:])
    # picture 33 of the training part, alone: the second face, the letter H
    generator = np.random.Generator(np.random.PCG64(derived_seed(0, 0, 33)))
    alone = draw(
        shapes(font_files("train")[1])[7], Ranges.of(SMALL.difficulty), generator=generator
    )
    assert np.array_equal(alone, every[33])
    other = generated(dataclasses.replace(SMALL, seed=1))
    assert not any(np.array_equal(a, b) for a, b in zip(every, other, strict=True))


def test_parts(tmp_path):
    data = build_data(DataSpec(name="glyphs"))
    assert data.classes == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert (data.num_classes, data.channels, data.image_size) == (26, 3, 32)
    assert data._parts is None
    parts = letters(tmp_path).parts
    every = generated(SMALL)
    assert np.array_equal(parts.train.images.numpy(), every[:60])
    assert np.array_equal(parts.validation.images.numpy(), every[60:86])
    assert np.array_equal(parts.test.images.numpy(), every[86:])
    assert max(Counter(parts.train.labels.tolist()).values()) == 3
    assert set(Counter(parts.validation.labels.tolist()).values()) == {1}


@pytest.mark.slow
def test_normalisation_is_that_of_the_default_training_part(tmp_path):
    data = letters(tmp_path, GlyphsSpec(validation=26, test=26), augment=False)
    images = torch.cat([image for image, _ in data.train_dataloader()])
    assert images.mean((0, 2, 3)).abs().max() < 1e-3
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-3
    counts = torch.bincount(data.parts.train.labels)
    assert counts.tolist() == [96] * 26


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(tmp_path, workers):
    fresh = list(letters(tmp_path, seed=5, batch_size=32).train_dataloader())
    assert [len(label) for _, label in fresh] == [32, 28]
    assert fresh[0][0].shape[1:] == (3, 32, 32)
    again = letters(tmp_path, seed=5, batch_size=32, workers=workers).train_dataloader()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(fresh, again, strict=True))
    moved, _ = next(iter(letters(tmp_path, seed=6, batch_size=32).train_dataloader()))
    assert not torch.equal(moved, fresh[0][0])
    assert next(iter(letters(tmp_path, image_size=16).val_dataloader()))[0].shape[2:] == (16, 16)


# --- what is kept


def test_pictures_are_generated_once(tmp_path, monkeypatch):
    first = letters(tmp_path).parts
    (file,) = (tmp_path / "glyphs").iterdir()
    assert file == cache_path(tmp_path, SMALL)
    monkeypatch.setattr(glyphs, "generated", None)
    second = letters(tmp_path, seed=9).parts  # another run, the same pictures
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.labels, second.test.labels)


@pytest.mark.parametrize(
    "damage",
    mostly_slow(
        [
            lambda data: b"",
            lambda data: data[:-1],
            lambda data: data + b"\0",
            lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            lambda data: bytes([data[0] ^ 1]) + data[1:],
        ],
        day={1, 3},
    ),
    ids=["empty", "cut", "longer", "digest", "pixel"],
)
def test_a_damaged_file_is_replaced(tmp_path, damage, caplog):
    letters(tmp_path)
    file = cache_path(tmp_path, SMALL)
    good = file.read_bytes()
    file.write_bytes(damage(good))
    with caplog.at_level(logging.WARNING):
        parts = letters(tmp_path).parts
    assert "is damaged; its pictures are generated again" in caplog.text
    assert file.read_bytes() == good
    assert np.array_equal(parts.train.images.numpy(), generated(SMALL)[:60])


def test_the_name_depends_on_options_version_and_fonts(tmp_path, monkeypatch):
    changed = {"train": 61, "validation": 27, "test": 41, "difficulty": 0.1, "seed": 1}
    assert set(changed) == {field.name for field in dataclasses.fields(GlyphsSpec)}
    names = [cache_path(tmp_path, SMALL)]
    names += [
        cache_path(tmp_path, dataclasses.replace(SMALL, **{k: v})) for k, v in changed.items()
    ]
    monkeypatch.setattr(glyphs, "VERSION", glyphs.VERSION + 1)
    names.append(cache_path(tmp_path, SMALL))
    monkeypatch.setitem(fonts.FACES, "test", FACES["test"][::-1])
    names.append(cache_path(tmp_path, SMALL))
    assert len(set(names)) == len(names) == 8


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    code = (
        "import sys; from qat.spec.run import *; from qat.data.glyphs.glyphs import *\n"
        "spec = GlyphsSpec(train=60, validation=26, test=40)\n"
        "data = Glyphs(DataSpec(name='glyphs', root=sys.argv[1], glyphs=spec))\n"
        "print(hashlib.sha256(data.parts.train.images.numpy().tobytes()).hexdigest())"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    expected = hashlib.sha256(generated(SMALL)[:60].tobytes()).hexdigest()
    assert [run.communicate()[0].decode().strip() for run in runs] == [expected] * 2
    assert list((tmp_path / "glyphs").iterdir()) == [cache_path(tmp_path, SMALL)]


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot keep its pictures in .*data\.root") as caught:
        letters(tmp_path / "file")
    assert "\n" not in str(caught.value)


# --- options


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("train=25", r"data\.glyphs\.train must be an integer >= 26 and <= 1000000; got 25"),
        ("test=1000001", r"data\.glyphs\.test .* got 1000001"),
        ("validation=30.5", r"data\.glyphs\.validation must be an integer .* got 30\.5"),
        ("difficulty=1.01", r"data\.glyphs\.difficulty must be a number >= 0 and <= 1; got 1\.01"),
        ("difficulty=hard", r"data\.glyphs\.difficulty must be a number .* got 'hard'"),
        ("seed=-1", r"data\.glyphs\.seed must be an integer >= 0; got -1"),
    ],
)
def test_wrong_options(option, words):
    with pytest.raises(SpecError, match=words) as caught:
        checked(conf_folder(), ["data=glyphs", f"data.glyphs.{option}"])
    assert "\n" not in str(caught.value)


def test_options_are_for_glyphs_only():
    with pytest.raises(SpecError, match=r"data\.glyphs is for data=glyphs; got data\.name=digits"):
        DataSpec(glyphs=GlyphsSpec())
    with pytest.raises(SpecError, match=r"data\.glyphs is for data=glyphs"):
        checked(conf_folder(), ["+data.glyphs.seed=1"])
    assert checked(conf_folder(), ["data=digits"]).spec.data.glyphs is None
    for file in (conf_folder() / "data").glob("*.yaml"):  # a new key would change their hashes
        assert ("glyphs" in yaml.safe_load(file.read_text())) == (file.stem == "glyphs")


def test_the_config_says_the_defaults():
    found = checked(conf_folder(), ["data=glyphs"]).spec.data
    assert found.glyphs == GlyphsSpec()
    base = dataclasses.replace(found, glyphs=SMALL)
    assert composed_data(conf_folder(), ["data.batch_size=7"], base).glyphs == SMALL


def test_options_are_checked_without_torch():
    code = (
        "import sys; from qat.spec.data import *; from qat.spec.data_files import check_data\n"
        "check_data(DataSpec(name='glyphs', glyphs=GlyphsSpec()))\n"
        "print([m for m in ('torch', 'numpy', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_real_run_trains_on_them(tmp_path):
    size = ["data.glyphs.train=40", "data.glyphs.validation=26", "data.glyphs.test=26"]
    command = [
        "data=glyphs",
        "model=resnet20",
        "trainer.max_epochs=1",
        "warm_start.epochs=0",
        *size,
    ]
    folder = tmp_path / "run"
    train(*command, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert json.loads((folder / "summary.json").read_text())["classes"] == list(CLASSES)
    assert len(list((tmp_path / "datasets" / "glyphs").iterdir())) == 1
