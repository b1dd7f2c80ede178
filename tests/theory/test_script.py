"""`python scripts/theory.py`: files, table and verdicts of a real run; one line for a mistake."""

import csv
import subprocess
import sys

import pytest

from support import ROOT


def command(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/theory.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_two_experiments(tmp_path):
    run = command("experiment=correlation,blending", f"out={tmp_path}", "threads=1")
    assert run.returncode == 0, run.stderr
    for name in ("correlation", "blending"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
        rows = list(csv.reader((tmp_path / f"{name}.csv").open()))
        assert len(rows) > 5
        assert {len(row) for row in rows} == {len(rows[0])}
    claims = list(csv.DictReader((tmp_path / "claims.csv").open()))
    assert {row["experiment"] for row in claims} == {"correlation", "blending"}
    for row in claims:
        assert f"{row['verdict'].upper()}: {row['claim']}" in run.stdout
        assert row["evidence"] in run.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["experiment=recurrenc"], ["recurrenc", "choose all", "finite_samples"]),
        (["experiments=all"], ["experiments", "did you mean experiment"]),
        (["seed=-1"], ["seed", "-1"]),
        (["threads=two"], ["threads", "two"]),
        (["recurrence"], ["recurrence", "key=value"]),
        (["out=/dev/null/x"], ["/dev/null/x", "another folder"]),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, words):
    run = command(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    for word in words:
        assert word in run.stderr
