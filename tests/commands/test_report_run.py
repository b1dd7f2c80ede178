"""The quick tour: a real sweep, its report, and the numbers of both by a few lines of their own."""

import csv
import json
import statistics
import sys

import pytest
import yaml

from qat.commands.report import command
from support import ROOT
from support.real_run import train

REPORT = ROOT / "scripts" / "report.py"
ROWS = ("float", "bcgd_w1a4")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour")
    own = ("trainer.max_epochs=3", "warm_start.epochs=1", "training.threads=1")
    train("-m", "model=lenet5", f"quant={','.join(ROWS)}", "seed=1,2", *own, "sweep.name=tour",
          cwd=folder)  # fmt: skip
    return folder / "sweeps" / "tour"


def curves(sweep, quant):
    """Validation accuracy by epoch of each seed's run, straight from metrics.csv."""
    found = {}
    for run in sweep.glob("*-*-*"):
        overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
        if f"quant={quant}" in overrides:
            with (run / "metrics.csv").open() as file:
                rows = [row for row in csv.DictReader(file) if row["val/acc"]]
            seed = next(o for o in overrides if o.startswith("seed="))
            found[seed] = [float(row["val/acc"]) for row in rows]
    return found


@pytest.mark.slow
def test_the_numbers_of_the_report_are_those_of_the_metrics(sweep, tmp_path):
    train(str(sweep), f"out={tmp_path}", cwd=tmp_path, script=REPORT)
    with (tmp_path / "comparison.csv").open() as file:
        told = {row["network"]: row for row in csv.DictReader(file)}
    assert told.keys() == set(ROWS)
    for quant, row in told.items():
        last = [curve[-1] for curve in curves(sweep, quant).values()]
        assert len(last) == 2
        assert float(row["last_val_acc_mean"]) == pytest.approx(statistics.fmean(last))
        # two values: t of one degree of freedom is 12.706, its half interval t * gap / 2
        half = 12.7062 * abs(last[0] - last[1]) / 2
        assert float(row["last_val_acc_high"]) - float(row["last_val_acc_mean"]) == pytest.approx(
            half, rel=1e-4, abs=1e-9
        )
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    for text in (*ROWS, "2 networks to compare"):
        assert text in page
    assert list((tmp_path / "pictures").glob("*.svg"))


@pytest.mark.slow
def test_the_card_of_a_sweep_runs_again_to_the_same_numbers(sweep, tmp_path):
    train(str(sweep), f"out={tmp_path}/page", f"cards={tmp_path}", "name=tour", cwd=tmp_path,
          script=REPORT)  # fmt: skip
    card = yaml.safe_load((tmp_path / "tour.yaml").read_text())
    row = next(row for row in card["rows"] if row["label"] == "bcgd_w1a4")
    words = row["commands"][0].split()
    assert words[:3] == ["python", "train.py", "-m"]
    single = [w.replace("seed=1,2", "seed=2") for w in words[3:]]
    run = tmp_path / "again"
    train(*single, f"hydra.run.dir={run}", cwd=tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["last"]["test_acc"] == pytest.approx(row["last"]["test"]["values"][1], abs=1e-6)
    assert summary["code"]["sources"] == card["origins"][0]["code"]["sources"]
    page = tmp_path / "page.md"
    page.write_text("<!-- card: tour.yaml -->\n<!-- end of card -->\n")
    train(f"readme={page}", cwd=tmp_path, script=REPORT)
    assert "| `bcgd_w1a4` | 2 |" in page.read_text()


@pytest.mark.slow
def test_every_run_ends_with_a_page_of_its_own(sweep):
    pages = [run / "report.html" for run in sweep.glob("*-*-*")]
    assert len(pages) == 4
    assert all("Layer by layer" in page.read_text() for page in pages)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], ["nowhere", "options are"]),
        (["."], ["no run folder", "runs/DATE/TIME"]),
        (["readme=missing.md"], ["missing.md", "is missing"]),
        ([".", "state=best"], ["state", "last", "selected", "best"]),
    ],
)
def test_a_wrong_report_is_one_line(words, told, refused):
    printed = refused(*words)
    assert all(word in printed for word in told), printed


@pytest.mark.slow
def test_claims_and_references_name_what_there_is(sweep, refused):
    for option in ("reference=nothing", "claims=[float > nothing]", "claims=[float]"):
        printed = refused(str(sweep), "out=page", option)
        assert "bcgd_w1a4" in printed or "LABEL > LABEL" in printed


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """What the command answers in one line to words that it refuses."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["report.py", *words])
        with pytest.raises(SystemExit) as stop:
            command()
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run
