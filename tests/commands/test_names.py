"""Names of files, which may hold anything: they steer no terminal and break no line."""

import csv
import io
import os
import re
import shutil
import sys

import pytest
import torch

from qat.commands import evaluate, export, predict, report, train
from qat.commands.options import let_print_anything
from qat.errors import DataError, SpecError, one_line, shown
from qat.spec.header import Preprocessing
from qat.spec.sweep import SweepSpec
from qat.sweep.plan import plan_lines
from qat.sweep.progress import closing_lines
from support import ROOT

HOSTILE = {
    b"a\x1b[2J.png": r"a\x1b[2J.png",
    b"a\nerror: b.png": r"a\nerror: b.png",
    b"a\r\x08b.png": r"a\r\x08b.png",
    b"caf\xe9.png": r"caf\xe9.png",
    b"\xc2\x9b2J.png": r"\x9b2J.png",
    "\u202egnp.png".encode(): r"\u202egnp.png",
    b"a\tb.png": r"a\tb.png",
}
PLAIN = ["a b.png", "名前.png", "café.png", "it's.png", "a\\b.png"]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_printed_is_escaped(name):
    assert shown(os.fsdecode(name)) == HOSTILE[name]
    assert shown(HOSTILE[name]) == HOSTILE[name]


@pytest.mark.parametrize("name", PLAIN)
def test_what_can_be_printed_stays(name):
    assert shown(name) == name == one_line(name)


class Network:
    """Answers every image with its second class."""

    preprocessing = Preprocessing(
        channels=3, size=8, mean=(0.0,) * 3, std=(1.0,) * 3, classes=("one", "two")
    )

    def logits(self, images):
        return torch.tensor([[0.0, 9.0]]).expand(len(images), 2)


def test_predict_prints_a_line_for_each_name(tmp_path, monkeypatch, capsys):
    for name in [*map(os.fsdecode, HOSTILE), *PLAIN]:
        shutil.copy(ROOT / "tests" / "images" / "digit_3.png", tmp_path / name)
    model = tmp_path / "x.safetensors"
    model.touch()
    monkeypatch.setattr("qat.commands.network.open_network", lambda _, **options: Network())
    predict.main([str(tmp_path), f"model={model}"])
    out = capsys.readouterr().out
    out.encode()  # no lone surrogate is left
    lines = out.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    wanted = {f"{shown(tmp_path)}/{name}" for name in [*HOSTILE.values(), *PLAIN]}
    assert {line.partition("  ")[0].rstrip() for line in lines} == wanted


def mixed_folder(folder):
    """Two images, and between them one that is cut off and one that is none."""
    pixels = (ROOT / "tests" / "images" / "digit_3.png").read_bytes()
    for name, data in {"a": pixels, "b": pixels[:60], "c\xe9": pixels, "d": b"no image"}.items():
        (folder / f"{name}.png").write_bytes(data)
    model = folder / "x.safetensors"
    model.touch()
    return model


def test_predict_goes_on_after_what_is_no_image(tmp_path, monkeypatch, capsys):
    model = mixed_folder(tmp_path)
    monkeypatch.setattr("qat.commands.network.open_network", lambda _, **options: Network())
    with pytest.raises(DataError, match=r"2 of 4 files could not be read"):
        predict.main([str(tmp_path), f"model={model}", "top=1"])
    out, err = capsys.readouterr()
    assert [line.split()[1:] for line in out.splitlines()] == [["two", "1.000"]] * 2
    assert re.findall(r"^error: .*/(.)\.png is not a readable image", err, re.MULTILINE) == [
        "b",
        "d",
    ]


def test_predict_writes_a_table(tmp_path, monkeypatch, capsys):
    model = mixed_folder(tmp_path)
    shutil.copy(tmp_path / "a.png", tmp_path / os.fsdecode(b"e\xff.png"))
    monkeypatch.setattr("qat.commands.network.open_network", lambda _, **options: Network())
    out = tmp_path / "answers.csv"
    with pytest.raises(DataError, match="2 of 5 files"):
        predict.main([str(tmp_path), f"model={model}", "top=2", f"out={out}"])
    with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert "answers.csv: 3 images" in capsys.readouterr().out
    names = ("a.png", "b.png", "c\xe9.png", "d.png", os.fsdecode(b"e\xff.png"))
    by_file = {name: [row for row in rows if row["file"] == f"{tmp_path}/{name}"] for name in names}
    assert sum(map(len, by_file.values())) == len(rows)
    for name, own in by_file.items():
        if name in ("b.png", "d.png"):
            assert [(r["class"], "is not a readable image" in r["error"]) for r in own] == [
                ("", True)
            ]
        else:
            assert [(r["rank"], r["class"], r["error"]) for r in own] == [
                ("1", "two", ""), ("2", "one", "")
            ]  # fmt: skip
            assert sum(float(r["probability"]) for r in own) == pytest.approx(1)


def test_predict_leaves_no_table_where_it_cannot_go_on(tmp_path, monkeypatch):
    model = mixed_folder(tmp_path)

    def broken(_, **options):
        class Broken(Network):
            def logits(self, images):
                raise DataError("no logits")

        return Broken()

    monkeypatch.setattr("qat.commands.network.open_network", broken)
    before = set(tmp_path.iterdir())
    with pytest.raises(DataError, match="no logits"):
        predict.main([f"{tmp_path}/a.png", f"model={model}", f"out={tmp_path}/answers.csv"])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "x.safetensors")
    before |= {tmp_path / "pipe", tmp_path / "link"}
    names = ("", "none/answers.csv", "a.png", "x.safetensors", "pipe", "link")
    for place in (tmp_path / name for name in names):
        with pytest.raises(SpecError, match="out="):
            predict.main([f"{tmp_path}/a.png", f"model={model}", f"out={place}"])
    assert set(tmp_path.iterdir()) == before


COMMANDS = {
    "predict": (predict.command, lambda path: [path, f"model={path}"]),
    "predict-image": (predict.command, lambda path: [path, "model=NET"]),
    "evaluate": (evaluate.command, lambda path: [f"model={path}"]),
    "export": (export.command, lambda path: [f"run={path}"]),
    "report": (report.command, lambda path: [path]),
    "train": (train.main, lambda path: ["data=image_folder", f"data.root={path}"]),
    "train-resume": (train.main, lambda path: [f"resume={path}"]),
    "train-init": (train.main, lambda path: ["model=lenet5", f"init_from={path}"]),
}


@pytest.mark.parametrize("name", [b"a\x1b[2Jb", b"a\n\x1b]0;x\x07b", b"caf\xe9\x1b[2J"])
@pytest.mark.parametrize("command", COMMANDS)
def test_errors_name_files_in_one_line(command, name, tmp_path, monkeypatch, capsys):
    run, arguments = COMMANDS[command]
    net = tmp_path / "x.safetensors"
    net.touch()
    words = [w.replace("NET", str(net)) for w in arguments(f"/no/{os.fsdecode(name)}")]
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit):
        run()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.removesuffix("\n").isprintable()
    assert r"\x1b" in captured.err


def test_sweeps_name_their_folder_in_one_line(tmp_path):
    folder = tmp_path / "a\x1b[2J\nb"
    for lines in (plan_lines([], SweepSpec(), folder), closing_lines([], folder)):
        assert all(line.isprintable() for line in lines)
        assert any(r"a\x1b[2J\nb" in line for line in lines)


def test_letters_that_the_terminal_lacks_are_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    let_print_anything()
    print("名")
    stream.flush()
    assert stream.buffer.getvalue() == rb"\u540d" + b"\n"
