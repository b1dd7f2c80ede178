"""Report: one page that compares runs: accuracies with their spread, curves, costs, failures.

python scripts/report.py RUNS...                     run folders, or any folders above run folders
python scripts/report.py sweeps/NAME reference=float

out=FOLDER                index.html, pictures/ (PNG and SVG), CSV; report/ in the first folder
reference=LABEL           network that the others are compared with; the float one by default
tuned=optimizer.lr        of networks that differ by this key only, show the one that is best on
                          validation, and how many values were tried
tuned_by=mean             what is best: the mean over the seeds, or the worst of them
state=last                epoch that is judged first: last, or selected (on validation)
title=TEXT                heading of the page
claims=[A > B, ...]       hold claims that A is better than B against the seeds of both
literature=true           draw what others published for the same data, network and bits
cards=FOLDER              also write FOLDER/DATA_MODEL.yaml: what was measured, to be done again
name=NAME                 of the card, for runs of one data set and network
commit=HASH               of the code, for runs of earlier versions that do not hold it
fill=FILE                 needs no runs: fill the tables of a Markdown file from the cards it names;
                          with cards=FOLDER write a page of all cards there (docs/results.md)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qat.commands.options import read_arguments, run_command
from qat.errors import CheckpointError, DataError, SpecError, shown
from qat.spec.schema import check, option
from qat.spec.sweep import TunedBy
from qat.storage.atomic import write_whole
from qat.storage.reading import read_regular

if TYPE_CHECKING:
    from qat.report.runs.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSpec:
    """Options of the command; see the module's text."""

    out: str | None = None
    reference: str | None = None
    tuned: str | None = None
    tuned_by: TunedBy = "mean"
    state: Literal["last", "selected"] = "last"
    title: str = option("Training runs")
    claims: tuple[str, ...] = ()
    literature: bool = False
    cards: str | None = None
    name: str | None = None
    commit: str | None = None
    fill: str | None = None
    readme: str | None = None  # what fill was called first

    def __post_init__(self) -> None:
        check(self, "")
        if self.fill is not None and self.readme is not None:
            raise SpecError("readme= is an earlier name of fill=; give one of them")

    @property
    def filled(self) -> Path | None:
        """The Markdown file that is filled."""
        name = self.fill if self.fill is not None else self.readme
        return None if name is None else Path(name)


def main(arguments: Sequence[str]) -> None:
    """Write the report that the arguments ask for."""
    folders, own = split_folders(arguments)
    spec = read_arguments(ReportSpec, own, example="reference=float")
    if folders:
        _report(folders, spec)
    elif spec.filled is None:
        raise SpecError("give at least one folder with runs, e.g. runs")
    if spec.filled is not None:
        _fill(spec.filled, spec)


def _report(folders: Sequence[Path], spec: ReportSpec) -> None:
    from qat.report.page.sweep_page import write_report
    from qat.report.runs.runs import read_runs

    runs = read_runs(folders)
    if not runs:
        named = ", ".join(map(str, folders))
        raise DataError(f"no run folder in {named}; give runs/DATE/TIME or a folder above it")
    if spec.cards is not None:
        _write_cards(runs, spec, Path(spec.cards))
    out = Path(spec.out) if spec.out is not None else folders[0] / "report"
    try:
        path = write_report(
            runs,
            out,
            title=spec.title,
            reference=spec.reference,
            tuned_key=spec.tuned,
            tuned_by=spec.tuned_by,
            state=spec.state,
            claims=spec.claims,
            literature=spec.literature,
        )
    except OSError as error:
        raise DataError(f"out={out} cannot be written: {error.strerror}; give another") from error
    finished = sum(run.is_finished for run in runs)
    print(f"{finished} of {len(runs)} runs finished; {shown(path)}")


def _write_cards(runs: Sequence["Run"], spec: ReportSpec, folder: Path) -> None:
    """One card for each data set and network.

    Raises:
        SpecError: one name for several cards, or one that is no file name.
        DataError: runs of different code.
    """
    from qat.report.cards.card import card_of, write_card
    from qat.report.runs.grouping import families_of

    families = families_of(runs, tuned_key=spec.tuned, tuned_by=spec.tuned_by)
    if spec.name is not None and len(families) > 1:
        titles = "; ".join(family.title for family in families)
        raise SpecError(f"name={spec.name} is one card, the runs are of several: {titles}")
    if spec.name is not None and spec.name != _safe(spec.name):
        raise SpecError(f"name={spec.name} is no file name; use letters, digits, _, . and -")
    names = file_names([family.title for family in families])
    for family in families:
        path = folder / f"{spec.name or names[family.title]}.yaml"
        card = card_of(
            family,
            reference=spec.reference,
            tuned_key=spec.tuned,
            tuned_by=spec.tuned_by,
            claims=spec.claims,
            commit=spec.commit,
        )
        write_card(path, card)
        print(shown(path))


def file_names(titles: Sequence[str]) -> dict[str, str]:
    """A file name for each title, all different: what runs tell must not lead out of a folder.

    >>> file_names(["digits, resnet20", "../a"])
    {'digits, resnet20': 'digits_resnet20', '../a': 'a'}
    """
    found: dict[str, str] = {}
    for title in titles:
        name = _safe(title.replace(", ", "_")) or "card"
        # some file systems do not tell capitals from small letters
        taken = {other.lower() for other in found.values()}
        numbered = (f"{name}-{number}" for number in count(2))
        found[title] = next(n for n in chain([name], numbered) if n.lower() not in taken)
    return found


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip(".-")[:100]


def _fill(path: Path, spec: ReportSpec) -> None:
    """Fill a Markdown file from cards: its tables, or the whole of a page that is made of them."""
    from qat.report.cards.card_table import has_tables, with_tables
    from qat.report.cards.results_page import is_results_page, results_page

    key = "fill" if spec.fill is not None else "readme"
    page = _text(path, key) if path.exists() or spec.cards is None else ""
    if page and not has_tables(page) and not is_results_page(page):
        raise DataError(
            f"{key}={path} names no card; write <!-- card: results/NAME.yaml --> and "
            "<!-- end of card --> where a table belongs, or give the name of a new page"
        )
    if spec.cards is not None and not has_tables(page):
        page = results_page(Path(spec.cards))
    else:
        page = with_tables(page, path.parent)
    write_whole(path.resolve(), page)  # a link stays one
    print(shown(path))


def _text(path: Path, key: str) -> str:
    try:
        return read_regular(path, f"{key}={path}").decode()
    except (CheckpointError, UnicodeDecodeError) as error:
        raise DataError(f"{error}; give a Markdown file") from None


def split_folders(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Folders and options; a folder may hold `=`, as those of sweeps do.

    Raises:
        SpecError: a folder does not exist.
    """
    names = tuple(f"{field.name}=" for field in fields(ReportSpec))
    own = [argument for argument in arguments if argument.startswith(names)]
    folders = [Path(argument) for argument in arguments if argument not in own]
    for folder in folders:
        if not folder.is_dir():
            known = ", ".join(names)
            raise SpecError(f"{folder} is neither a folder nor an option; options are {known}")
    return folders, own


def command() -> None:
    """Entry point of scripts/report.py and of the console script qat-report."""
    run_command(main, __doc__ or "")
