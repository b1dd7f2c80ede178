"""The images that a file asks for: a page's snippet, with Pillow, gives the numbers of predict."""

import ast
import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

from qat.commands.predict import image_reader
from qat.data.folders import ImageFolder
from qat.data.module import preprocessing_of
from qat.export.onnx.model import onnx_model
from qat.export.onnx.run import OnnxNetwork, onnx_metadata
from qat.models.small import CifarResNet
from qat.spec.data import DataSpec
from qat.spec.header import Header, Preprocessing
from support.damaged import parts, small_file
from support.exported import SPECS, exported
from support.image_folders import write_pictures
from support.networks import prepared, tiny
from support.pages import blocks

GREY = {"channels": 1, "mean": (0.4,), "std": (0.3,)}
COLOUR = {"channels": 3, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIZES = [(40, 31), (31, 40), (24, 24), (9, 50), (200, 133)]


def model(preprocessing):
    channels, size = preprocessing.channels, preprocessing.size
    _, graph = exported(
        lambda: CifarResNet(8, num_classes=5, in_channels=channels),
        SPECS["w1a4"],
        torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(3)),
    )
    header = Header(quant=SPECS["w1a4"], preprocessing=preprocessing)
    return onnx_model(graph, metadata=onnx_metadata(header, "faithful")).SerializeToString()


def photo(size, mode, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def snippet(page):
    (block,) = [b.text for b in blocks(page) if b.language == "python" and "ImageOps" in b.text]
    return block


@pytest.mark.parametrize("crop", ["whole", "centre"])
@pytest.mark.parametrize("colour", [GREY, COLOUR], ids=["grey", "colour"])
def test_the_snippet_of_the_page_gives_the_numbers_of_predict(crop, colour, tmp_path, monkeypatch):
    shared = {"size": 16, "crop": crop, "upright": crop == "centre", "classes": tuple("abcdé")}
    preprocessing = Preprocessing(**colour, **shared)
    (tmp_path / "shipped").mkdir()
    (tmp_path / "tests/images").mkdir(parents=True)
    data = model(preprocessing)
    (tmp_path / "shipped/fast.onnx").write_bytes(data)
    network = OnnxNetwork(data, "fast.onnx")
    monkeypatch.chdir(tmp_path)
    code = compile(snippet("shipping"), "shipping.md", "exec")
    path = tmp_path / "tests/images/digit_3.png"
    for number, (size, mode) in enumerate(zip(SIZES, ("RGB", "L", "P", "LA", "RGB"), strict=True)):
        exif = Image.Exif()
        exif[0x0112] = 6  # stored turned by 90 degrees
        photo(size, mode, number).save(path, exif=exif)
        found = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, found)
        wanted = network(image_reader(preprocessing)(path)[None]).numpy()
        assert np.abs(found["logits"] - wanted).max() < 1e-5 * np.abs(wanted).max()
        assert found["classes"][found["logits"].argmax()] == "abcdé"[wanted.argmax()]


def test_the_snippet_tells_the_share_of_large_logits():
    body = ast.parse(snippet("shipping")).body
    (ran,) = [i for i, node in enumerate(body) if "session.run(" in ast.unparse(node)]
    code = compile(ast.Module(body[ran + 1 :], []), "shipping.md", "exec")
    for logits in ([1000.0, 999.0, -1000.0], [-1000.0, -1001.0, -3000.0]):
        names = {"np": np, "classes": "abc", "logits": np.array([logits], np.float32)}
        with contextlib.redirect_stdout(io.StringIO()) as told:
            exec(code, names)
        name, share = told.getvalue().split()
        assert (name, float(share)) == ("a", pytest.approx(1 / (1 + np.exp(-1))))


def test_packed_and_onnx_files_tell_what_becomes_of_an_image(tmp_path):
    write_pictures(tmp_path, {"cat": 4, "dog": 4})
    data = ImageFolder(DataSpec(name="image_folder", root=str(tmp_path), image_size=64))
    told = preprocessing_of(data, ("cat", "dog"))
    wanted = {
        "color": "RGB", "crop": "centre", "resize_shorter": 73, "size": 64,
        "interpolation": "bilinear", "antialias": True, "classes": ["cat", "dog"],
    }  # fmt: skip
    spec = SPECS["w1a4"]
    header, _, _ = parts(small_file(spec, prepared(tiny, spec), preprocessing=told))
    assert {key: header["preprocessing"][key] for key in wanted} == wanted
    texts = onnx_metadata(Header(quant=spec, preprocessing=told), "fast")
    plain = {key: texts[key] for key in wanted}
    assert plain == {
        "color": "RGB", "crop": "centre", "resize_shorter": "73", "size": "64",
        "interpolation": "bilinear", "antialias": "true", "classes": '["cat", "dog"]',
    }  # fmt: skip
