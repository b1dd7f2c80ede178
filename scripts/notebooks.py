"""The notebooks run from top to bottom, with what their cells answer kept in them.

    python scripts/notebooks.py                     every notebook in notebooks/
    python scripts/notebooks.py only=01_estimators  one of them

Needs the extra `notebooks`. Each runs in a kernel of its own, on one thread. Nothing is kept that
tells of a machine: no times, no versions, no warnings; so equal answers give equal files.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qat.commands.options import read_arguments, run_command
from qat.errors import DataError, SpecError
from qat.spec.schema import check
from qat.storage.atomic import write_whole

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_SECONDS = 1200  # of a cell, on a busy machine


@dataclass(frozen=True, slots=True, kw_only=True)
class NotebooksSpec:
    """Options of the command; see the module's text."""

    only: str | None = None

    def __post_init__(self) -> None:
        check(self, "")


def executed(path: Path) -> Any:
    """A notebook with the answers of its cells, and nothing of the machine that gave them.

    Raises:
        DataError: a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    own = {"timeout": _SECONDS, "record_timing": False, "coalesce_streams": True}
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, kernel_name="python3", resources=place, **own)
    try:
        client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    except CellExecutionError as error:
        raise DataError(f"{path.name}: {error.ename}: {error.evalue}") from error
    notebook.metadata = nbformat.from_dict(_METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            # a warning names files of this machine
            cell.outputs = [answer for answer in cell.outputs if answer.get("name") != "stderr"]
            for answer in cell.outputs:
                (answer.get("data") or {}).pop("text/plain" if _is_picture(answer) else "", None)
    return notebook


def _is_picture(answer: Any) -> bool:
    return "image/png" in (answer.get("data") or {})


def main(arguments: Sequence[str]) -> None:
    """Run the notebooks and write them."""
    spec = read_arguments(NotebooksSpec, arguments, example="only=01_estimators")
    missing = [name for name in ("nbclient", "ipykernel") if find_spec(name) is None]
    if missing:
        raise SpecError(
            f"notebooks need {' and '.join(missing)}; install the extra: "
            "pip install -c constraints.txt -e '.[notebooks]'"
        )
    paths = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    if spec.only is not None and spec.only not in paths:
        raise SpecError(f"only={spec.only} is no notebook; choose among {', '.join(paths)}")
    import nbformat

    for path in [paths[spec.only]] if spec.only else paths.values():
        write_whole(path, nbformat.writes(executed(path)) + "\n")
        print(path, flush=True)


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
