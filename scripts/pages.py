"""The pages that are made, not written: every option, Lightning's parts, results, benchmarks.

    python scripts/pages.py                 write docs/options.md, lightning, results, ...
    python scripts/pages.py check=true      only say which of them are not as they would be written

The tables in README.md that name a card are filled, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coverage_page import coverage_page
from lightning_page import lightning_page
from measured import benchmarks_page
from options_page import options_page

from qat.commands.options import read_arguments, run_command
from qat.errors import DataError
from qat.report.cards.card_table import with_tables
from qat.report.cards.results_page import results_page
from qat.spec.schema import check
from qat.storage.atomic import write_whole

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class PagesSpec:
    """Options of the command; see the module's text."""

    check: bool = False

    def __post_init__(self) -> None:
        check(self, "")


def generated() -> dict[str, str]:
    """Path below the root -> text of every page that is made."""
    results = ROOT / "results"
    return {
        "README.md": with_tables((ROOT / "README.md").read_text(encoding="utf-8"), ROOT),
        "docs/options.md": options_page(),
        "docs/lightning.md": lightning_page(),
        "docs/results.md": results_page(results),
        "docs/coverage.md": coverage_page(results / "coverage" / "networks.yaml"),
        "docs/benchmarks.md": benchmarks_page(results / "benchmarks"),
    }


def main(arguments: Sequence[str]) -> None:
    """Write the pages, or say which of them are not as they would be written."""
    spec = read_arguments(PagesSpec, arguments, example="check=true")
    stale = []
    for name, text in generated().items():
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not spec.check:
                write_whole(path, text)
    if spec.check and stale:
        raise DataError(f"{', '.join(stale)}: not as written now; run python scripts/pages.py")
    print(", ".join(stale) or "every page is as it would be written")


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
