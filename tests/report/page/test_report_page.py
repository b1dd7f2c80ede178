"""The page as a whole: its numbers again from the files, nothing from outside, nothing hostile."""

import csv
import json
import math
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from qat.commands.report import main
from qat.errors import DataError, SpecError
from qat.report.page.html import (
    Bullets,
    Details,
    Gallery,
    Heading,
    Paragraph,
    Picture,
    Section,
    TextTable,
    page,
)
from qat.report.page.run_page import write_run_report
from qat.storage.atomic import write_whole
from support import ROOT
from support.run_folders import write_run

T_2 = 4.302653  # Student's t(0.975) with two degrees of freedom, from a printed table
VOID = {"meta", "br", "img", "link", "input", "hr", "wbr"}
TEST = {"float": (0.95, 0.96, 0.93), "bcgd_w1a4": (0.9, 0.88, 0.91)}
VAL = {"float": (0.97, 0.99, 0.98), "bcgd_w1a4": (0.94, 0.93, 0.95)}


class Reader(HTMLParser):
    """Checks that elements nest, and keeps what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.targets = [], [], [], []
        self.attributes, self.cells, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        self.targets += [v for name, v in attrs if name in ("href", "src", "xlink:href", "srcset")]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


@pytest.fixture
def undrawn(monkeypatch):
    """Pages for their texts: no picture is drawn, which takes most of the time."""
    monkeypatch.setattr("qat.report.page.pictures.inline_svg", lambda *_, **__: "<svg></svg>")
    monkeypatch.setattr("qat.report.page.pictures.save_figure", lambda *_, **__: [])


def records(folder):
    lines = ["step,epoch,layer,quantity,value"]
    lines += [f"{s},2,{n},{q},0.5" for s in (1, 2) for n in ("a", "b") for q in ("alpha", "scale")]
    (folder / "layers.csv").write_text("\n".join(lines) + "\n")
    head = "step,epoch,layer,low,high,levels,counts\n"
    (folder / "histograms.csv").write_text(f"{head}1,2,a,-2,2,-1.0 1.0,1 2 1\n")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Seven runs of two networks, one of them dead; to be read only."""
    runs = tmp_path_factory.mktemp("sweep") / "runs"
    for quant, tests in TEST.items():
        for index, test in enumerate(tests):
            val, bytes_ = VAL[quant][index], 32000 if quant == "float" else 1000
            matrix = [[3, 1], [0, 4]]
            last = {"epoch": 4, "val_acc": val, "test_acc": test, "confusion": matrix}
            name = f"{quant}-{index}"
            records(write_run(runs, name, quant=quant, seed=index + 1, last=last, bytes=bytes_))
    write_run(runs, "dead", seed=9, state="failed", error="step 4: the loss is nan")
    return runs


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory):
    """The report of them, by the command."""
    folder = tmp_path_factory.mktemp("report")
    main([str(sweep), f"out={folder}"])
    return folder


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def row_of(reader, label):
    return next(row for row in reader.cells if row[:1] == [label])


def assert_self_contained(reader):
    assert not {"script", "img", "link", "iframe", "object", "form", "base"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert len(set(reader.ids)) == len(reader.ids)
    for target in reader.targets:
        assert target.startswith(("#", "data:image/png;base64,")), target
        if target.startswith("#"):
            assert target[1:] in reader.ids
    for name, value in reader.attributes:
        for target in re.findall(r"url\(([^)]*)\)", value or "") if name != "aria-label" else ():
            assert target.lstrip("#") in reader.ids


def test_the_numbers_are_those_of_the_run_folders(sweep, report):
    reader = read(report / "index.html")
    # again, from summary.json alone
    found = {}
    for path in sorted(sweep.glob("*/summary.json")):
        quant = path.parent.name.partition("-")[0]
        found.setdefault(quant, []).append(json.loads(path.read_text())["last"]["test_acc"])
    own, base = found["bcgd_w1a4"], found["float"]
    gaps = [a - b for a, b in zip(own, base, strict=True)]
    center, sd = statistics.mean(gaps), statistics.stdev(gaps)
    t = abs(center) / sd * math.sqrt(3)
    half, wide = (T_2 * s / math.sqrt(3) for s in (statistics.stdev(own), sd))
    signed = [f"{100 * (center + side * wide):+.2f}" for side in (-1, 1)]
    assert row_of(reader, "bcgd_w1a4") == [
        "bcgd_w1a4",
        "3 of 4",
        f"{100 * statistics.mean(own):.2f} ± {100 * statistics.stdev(own):.2f}",
        f"{100 * (statistics.mean(own) - half):.2f} to {100 * (statistics.mean(own) + half):.2f}",
        f"{100 * center:+.2f}".replace("-", "\N{MINUS SIGN}"),
        " to ".join(signed).replace("-", "\N{MINUS SIGN}"),
        f"{1 - t / math.sqrt(2 + t * t):.3f}",
        "lower" if 1 - t / math.sqrt(2 + t * t) < 0.05 else "within noise",
        f"{100 * statistics.mean(VAL['bcgd_w1a4']):.2f} ± 1.00",
    ]
    assert row_of(reader, "float")[4:8] == ["–", "–", "–", "reference"]  # noqa: RUF001
    assert row_of(reader, "runs/dead")[-1] == "step 4: the loss is nan"


@pytest.mark.usefixtures("undrawn")
def test_the_csv_holds_the_same_in_full(sweep, tmp_path, capsys):
    main([str(sweep), f"out={tmp_path / 'out'}", "reference=bcgd_w1a4", "state=selected"])
    assert "6 of 7 runs finished" in capsys.readouterr().out
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    own = rows["bcgd_w1a4"]
    assert float(own["last_test_acc_mean"]) == statistics.fmean(TEST["bcgd_w1a4"])
    sd = statistics.stdev(TEST["bcgd_w1a4"])
    width = float(own["last_test_acc_predicted_high"]) - float(own["last_test_acc_mean"])
    assert width == pytest.approx(T_2 * sd * math.sqrt(4 / 3), rel=1e-6)
    assert (own["is_reference"], own["last_difference"]) == ("True", "")
    assert float(rows["float"]["last_difference"]) > 0
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert sorted(states) == ["failed", *["finished"] * 6]


def test_the_page_needs_nothing_but_itself(report):
    reader = read(report / "index.html")
    assert_self_contained(reader)
    pictures = reader.tags.count("svg")
    # accuracy, loss, flips; bytes, bit operations; per network alpha, histograms, confusion
    assert pictures == 3 + 2 + 2 * 3
    named = [value for name, value in reader.attributes if name == "aria-label"]
    assert sum("." in name for name in named) >= pictures
    assert ("role", "img") in reader.attributes
    for suffix in ("png", "svg"):
        files = list((report / "pictures").glob(f"*.{suffix}"))
        assert len(files) == pictures
        assert all(file.stat().st_size > 1000 for file in files)
    assert reader.tags.count("h2") == 3
    assert "<th>" not in (report / "index.html").read_text()  # each has a scope


def test_equal_runs_give_equal_pages(make_run, tmp_path):
    folder = make_run("a")
    for name in ("one", "two"):
        main([str(folder), f"out={tmp_path / name}"])
    one, two = (sorted((tmp_path / n).rglob("*.*")) for n in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


EVIL = (
    "\"'></script><script>alert(1)</script><img src=http://x onerror=alert(1)>"
    "&--> $\\frac{$ \x07 \u65e5"
)

LOST = "<i>\udcff</i>"  # the byte 255 of a name that is no UTF-8


def test_every_block_escapes_every_text(tmp_path):
    table = TextTable(caption=EVIL, head=(EVIL, EVIL), rows=((EVIL, EVIL),))
    gallery = Gallery([Picture(svg="<svg></svg>", title=EVIL, reading=EVIL)])
    blocks = [Paragraph(EVIL), Paragraph(EVIL, "note"), Heading(EVIL), Bullets([EVIL]), gallery]
    content = [*blocks, table, Details(EVIL, [*blocks, Details(LOST, [table])])]
    path = tmp_path / "page.html"
    write_whole(path, page(EVIL, content, [Section(EVIL, content), Section(LOST, content)]))
    reader = read(path)
    assert_self_contained(reader)
    assert not {"i", "script", "img"} & set(reader.tags)
    assert reader.text.count(EVIL) == 2 + 2 + 3 * (2 * 6 + 1 + 2 * 5)
    assert reader.text.count("<i>?</i>") == 2 + 3
    named = [value for name, value in reader.attributes if name == "aria-label"]
    assert named.count(EVIL) == 3 * 2 * 2


def test_hostile_texts_stay_texts(make_run, tmp_path):
    evil_layer = [{"name": EVIL, "weights": EVIL, "grid": [EVIL], "scale": EVIL}]
    states = {"confusion": [[1, 2], [3, 4]], "test_acc": 0.5, "val_acc": 0.5}
    for seed in (1, 2):
        folder = make_run(
            f"_evil '\"<b> $x$ {seed}",
            seed=seed,
            quant=EVIL,
            changes={"optimizer.note": EVIL, "data.name": EVIL, f"optimizer.{EVIL}": 1},
            audit=evil_layer,
            classes=[EVIL, "_b"],
            last=states,
            device=EVIL,
            config_hash=EVIL,
        )
        (folder / "layers.csv").write_text(
            f'step,epoch,layer,quantity,value\n1,1,"{EVIL.replace(chr(34), "")}",alpha,2\n'
        )
        make_run(f"other{seed}", seed=seed, quant="_x", changes={"data.name": EVIL})
    make_run("sad", state=EVIL, error=EVIL)
    make_run(
        "_evil <b>\n\udcff\"'", overrides=[f"optimizer.note={EVIL}"], state="failed", error=LOST
    )
    main([str(tmp_path / "runs"), f"out={tmp_path / 'out'}", "title=<b>&amp;"])
    reader = read(tmp_path / "out" / "index.html")
    assert_self_contained(reader)
    assert "b" in reader.tags  # of captions, and of nothing that came from a run
    assert reader.tags.count("b") == reader.tags.count("figcaption")
    assert "<script>alert(1)</script>" in reader.text
    assert "<b>&amp;" in reader.text
    assert row_of(reader, "runs/_evil <b>\n?\"'")[-1] == LOST.replace("\udcff", "?")
    own = write_run_report(folder)
    assert own is not None
    assert_self_contained(read(own))


def test_strange_summaries_break_nothing(make_run, tmp_path):
    make_run("a", seed=1, last=[1], selected=(None, "x"), audit={"a": 1}, bytes="many", bops=-1)
    make_run("b", seed=2, last={"test_acc": float("nan")}, audit=[1, None, {"name": None}])
    make_run("c", seed="x", last=None, audit=None, classes=3)
    make_run("d", seed=4, curve=(), last={"test_acc": 1e308, "confusion": [[0]]})
    main([str(tmp_path / "runs"), f"out={tmp_path / 'out'}"])
    assert_self_contained(read(tmp_path / "out" / "index.html"))
    for name in "abcd":
        assert write_run_report(tmp_path / "runs" / name) is not None


def test_runs_that_all_failed_are_a_report_too(make_run, tmp_path):
    make_run("a", state="failed", error="no data")
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "status.json").write_text("{")
    main([str(tmp_path / "runs")])
    reader = read(tmp_path / "runs" / "report" / "index.html")
    assert row_of(reader, "runs/a")[-2:] == ["failed", "no data"]
    assert "config.yaml is missing" in row_of(reader, "runs/b")[-1]


def test_a_run_has_a_page_of_its_own(make_run):
    folder = make_run("a", test=0.875, state="finished")
    records(folder)
    (folder / "status.json").write_text('{"state": "running"}')  # as while the run writes it
    path = write_run_report(folder)
    assert path == folder / "report.html"
    reader = read(path)
    assert_self_contained(reader)
    assert row_of(reader, "last epoch") == ["last epoch", "4", "95.00", "87.50", "0.5000"]
    assert row_of(reader, "quant.rule.rho")[-1] == "1e-05"
    assert reader.tags.count("svg") == 3 + 2


def test_a_page_that_cannot_be_written_is_one_warning(make_run, caplog):
    folder = make_run("a")
    (folder / "report.html").mkdir()
    assert write_run_report(folder) is None
    assert len(caplog.records) == 1
    assert "no report of the run" in caplog.text
    assert write_run_report(folder / "nowhere") is None


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ([], SpecError, "at least one folder"),
        (["nowhere"], SpecError, "nowhere is neither a folder nor an option"),
        (["reference=x"], SpecError, "at least one folder"),
        (["{runs}", "reference=x"], SpecError, "reference=x is no network of the report; there"),
        (["{runs}", "tuned=lr"], SpecError, "no run's config; did you mean optimizer.lr?"),
        (["{runs}", "cards={empty}", "name=../a"], SpecError, "name=../a is no file name"),
        (["{runs}", "state=best"], SpecError, "state must be one of last, selected"),
        (["{empty}"], DataError, "no run folder in"),
        (["{runs}", "out={runs}/dead/status.json"], DataError, "give another"),
    ],
)
def test_mistakes_are_one_line(sweep, tmp_path, arguments, kind, words):
    (tmp_path / "empty").mkdir()
    places = {"runs": sweep, "empty": tmp_path / "empty"}
    with pytest.raises(kind, match=re.escape(words)) as caught:
        main([argument.format(**places) for argument in arguments])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("undrawn")
def test_unequal_tuning_is_told(make_run, tmp_path):
    for lr in (0.1, 0.2):
        make_run(f"a{lr}", changes={"optimizer.lr": lr})
    make_run("f", quant="float", changes={"optimizer.lr": 0.2})
    words = [str(tmp_path / "runs"), f"out={tmp_path / 'out'}"]
    main([*words, "tuned=optimizer.lr"])
    reader = read(tmp_path / "out" / "index.html")
    assert "equally many values of optimizer.lr" in reader.text
    assert [row[-1] for row in reader.cells if row[0] in ("float", "bcgd_w1a4")][-2:] == [
        "0.2 of 1",
        "0.1 of 2, at the end of the range",
    ]
    assert "but with 1 to 2, as the last" in reader.text
    assert "lies at the end of the tried range for 1 of 2 networks" in reader.text
    main(words)
    assert "equally many" not in read(tmp_path / "out" / "index.html").text
    assert "tried range" not in read(tmp_path / "out" / "index.html").text


def test_folders_may_hold_equal_signs(make_run, tmp_path):
    folder = make_run("quant=a,seed=1")
    main([str(folder), f"out={tmp_path / 'lr=1'}"])
    assert (tmp_path / "lr=1" / "index.html").is_file()


def test_the_command_loads_no_torch(make_run, tmp_path):
    code = (
        "import sys; from qat.commands.report import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'lightning', 'hydra') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(make_run("a")), f"out={tmp_path / 'out'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""
