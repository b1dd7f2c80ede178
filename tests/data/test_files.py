"""Single image files: all pixel modes become 8-bit RGB, damaged ones are named in one line."""

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from qat.commands.predict import image_reader
from qat.data.image_files import UnreadableImageError, check_image, read_image
from qat.data.module import preprocessing_of
from qat.data.registry import build_data
from qat.errors import DataError
from qat.spec.data import DataSpec
from qat.spec.header import Preprocessing


def sixteen_bit(path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(path)
    return ramp >> 8


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, ending):
    expected = sixteen_bit(tmp_path / f"a.{ending}")
    pixels = np.asarray(read_image(str(tmp_path / f"a.{ending}")))
    assert pixels.shape == (8, 8, 3)
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


def test_sixteen_bit_pgm_is_scaled_too(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(">u2").reshape(8, 8)
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + ramp.tobytes())
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "a.pgm")))[..., 0], ramp >> 8)


def tiff(path, values, *, bits, sample=1, photometric=1, order="<"):
    """A grey TIFF file of 2 x 4 pixels, whose bytes are given; Pillow writes few kinds."""
    entries = {256: 4, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: 2}
    entries |= {279: len(values), 339: sample}
    rows = [struct.pack(f"{order}HHIHH", tag, 3, 1, n, 0) for tag, n in entries.items()]
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(rows))
    path.write_bytes(head + b"".join(rows) + bytes(4) + values)


LEVELS = [0, 256, 2**12, 2**15, 2**15 + 300, 2**16 - 256, 2**16 - 255, 2**16 - 1]
TWELVE = bytes.fromhex("000 0ff 100 3ff 800 9ff ff0 fff".replace(" ", ""))


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (np.array(LEVELS, "<u2").tobytes(), {"bits": 16}, [v >> 8 for v in LEVELS]),
        (np.array(LEVELS, ">u2").tobytes(), {"bits": 16, "order": ">"}, [v >> 8 for v in LEVELS]),
        (
            np.array(LEVELS, "<u2").tobytes(),
            {"bits": 16, "photometric": 0},
            [(2**16 - 1 - v) >> 8 for v in LEVELS],
        ),
        (TWELVE, {"bits": 12}, [0, 15, 16, 63, 128, 159, 255, 255]),
    ],
    ids=["little-endian", "big-endian", "white-is-zero", "twelve-bits"],
)
def test_grey_tiff_of_more_than_8_bits_is_scaled(tmp_path, values, options, expected):
    tiff(tmp_path / "a.tif", values, **options)
    pixels = np.asarray(read_image(str(tmp_path / "a.tif")))
    assert pixels[..., 0].ravel().tolist() == expected


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(
    ("bits", "sample", "order", "words"),
    [
        (8, 2, "<", "signed 8-bit"),
        (16, 2, "<", "signed 16-bit"),
        (16, 2, ">", "signed 16-bit"),
        (32, 2, "<", "signed 32-bit"),
        (32, 1, "<", "32-bit"),
        (32, 3, "<", "float"),
    ],
)
def test_pixels_without_a_range_are_refused_by_their_kind(
    tmp_path, bits, sample, order, words, decode
):
    path = tmp_path / "a.tif"
    tiff(path, bytes(8 * bits // 8), bits=bits, sample=sample, order=order)
    with pytest.raises(UnreadableImageError) as caught:
        check_image(str(path), decode=decode)
    cure = "convert it to 8 or 16 bits unsigned"
    assert caught.value.reason == f"{words} pixels have no fixed range, {cure}"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_all_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    pixels = np.asarray(read_image(str(path)))
    assert pixels.shape == (4, 5, 3)
    assert pixels.min() == 255


def test_palette_with_transparency_and_animation(tmp_path, recwarn):
    palette = Image.new("P", (4, 4))
    palette.putpalette([200, 100, 50] * 256)
    palette.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    assert np.asarray(read_image(str(tmp_path / "a.png")))[0, 0].tolist() == [200, 100, 50]
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (10, 20)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    assert read_image(str(tmp_path / "b.gif")).mode == "RGB"
    assert not recwarn.list


def truncated(path):
    buffer = io.BytesIO()
    Image.new("RGB", (200, 200)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[:900])


def truncated_png(path):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:3000])


def postscript(path):
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )


def integers(dtype, kind="TIFF"):
    return lambda path: Image.fromarray(np.arange(256, dtype=dtype).reshape(16, 16)).save(
        path, kind
    )


def foreign(kind):
    return lambda path: Image.new("RGB", (9, 9)).save(path, kind)


BAD = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("this is no image"),
    "truncated": truncated,
    "truncated_png": truncated_png,
    "broken_link": lambda path: path.symlink_to(path.parent / "nowhere"),
    "folder": lambda path: path.mkdir(),
    "float": lambda path: Image.fromarray(np.ones((3, 3), np.float32)).save(path, "TIFF"),
    "integers_of_32_bits": integers(np.int32),
    "signed_integers_of_16_bits": integers(np.int16),
    "postscript": postscript,
    "pdf": foreign("PDF"),
    "icon": foreign("ICO"),
    "jpeg_2000": foreign("JPEG2000"),
    "bomb": lambda path: path.write_bytes(
        b"P6 40000 40000 255\n" + bytes(100)  # 1.6 gigapixels claimed
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_in_one_line(tmp_path, kind):
    path = tmp_path / "bäd.png"
    BAD[kind](path)
    with pytest.raises(DataError, match=r"bäd\.png is not a readable image \(.+\); replace") as e:
        read_image(str(path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_bad_file_stops_the_loader_in_one_line(tmp_path, workers):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{number}.png")
    truncated(tmp_path / "cat" / "zz.jpg")
    options = {"root": str(tmp_path), "batch_size": 4, "workers": workers}
    data = build_data(DataSpec(name="image_folder", image_size=16, **options))
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    with pytest.raises(DataError, match=r"^/.*zz\.jpg is not a readable image") as caught:
        _ = [list(loader) for loader in loaders]
    assert "\n" not in str(caught.value)
    del (
        caught
    )  # it keeps the loader, whose worker takes 5 s to end where garbage collection ends it


def test_postscript_starts_no_ghostscript(tmp_path, monkeypatch):
    told = tmp_path / "told"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {told}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    postscript(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png is not a readable image \(it begins like none of"):
        read_image(str(tmp_path / "x.png"))
    assert not told.exists()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_upright_images_are_turned_as_viewers_do(tmp_path, orientation, deep):
    exif, path = Image.Exif(), tmp_path / "a.png"
    exif[ExifTags.Base.Orientation] = orientation
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (4, 6)).astype(np.uint16)
    image = Image.fromarray(pixels) if deep else Image.fromarray(pixels.astype(np.uint8))
    image.save(path, exif=exif)
    stored = read_image(str(path))
    assert stored.size == (6, 4)
    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image)
    expected = np.asarray(turned).astype(np.int64) >> (8 if deep else 0)
    assert np.array_equal(np.asarray(read_image(str(path), is_upright=True))[..., 0], expected)


def test_an_image_folder_is_upright_where_its_option_says_so(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (9, 5)).save(tmp_path / name / f"{number}.png", exif=exif)
    for upright, size in ((True, (5, 9)), (False, (9, 5))):
        options = DataSpec(name="image_folder", root=str(tmp_path), upright=upright)
        data = build_data(options)
        parts = data.parts
        assert {part[0][0].size for part in (parts.train, parts.validation, parts.test)} == {size}
        assert preprocessing_of(data, data.classes).upright == upright


def test_an_image_too_thin_to_be_scaled_is_refused_in_one_line(tmp_path):
    """Its shorter side scaled to the network's it would take gigabytes."""
    Image.new("L", (60_000, 1)).save(tmp_path / "thin.png")
    told = Preprocessing(
        channels=1, size=224, crop="centre", mean=(0.5,), std=(0.5,), classes=("a",)
    )
    assert image_reader(told)(tmp_path / "thin.png") == (
        f"{tmp_path / 'thin.png'}: an image of 60000 x 1 pixels is too thin to have a shorter side "
        "of 256; cut it"
    )
    Image.new("L", (2000, 1)).save(tmp_path / "thin.png")
    assert image_reader(told)(tmp_path / "thin.png").shape == (1, 224, 224)
