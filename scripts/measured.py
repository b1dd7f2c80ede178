"""What the scripts measured of time and size, kept as YAML, and the page made of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qat.errors import DataError
from qat.storage.atomic import write_whole
from qat.storage.provenance import code_version, machine, versions

_FILE_HEAD = "# Written by the script of its command (record=FILE); only `notes` are by hand.\n"
_KEYS = {"command", "origin", "tables", "notes"}
_HEAD = """# Benchmarks

<!-- written by scripts/pages.py from results/benchmarks/; not by hand -->

Time, memory and size, as the scripts named below measured them. Each table is data in
`results/benchmarks/NAME.yaml`; the script writes it anew with `record=FILE`. Times are of shared
machines without a GPU: the ratios within a row, measured in turns, say more than the milliseconds.
"""


def record(path: str, command: str, tables: Sequence[Sequence[Sequence[str]]], where: str) -> None:
    """Write what was measured, keeping the notes that a file has.

    Args:
        path: YAML file.
        command: that measures it again.
        tables: each a head and rows of texts.
        where: threads, versions of packages that matter.
    """
    file = Path(path)
    kept = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    origin = f"{machine()['processor']}, {where}, torch {versions().get('torch')}, commit "
    values = {
        "command": command,
        "origin": origin + str(code_version().commit),
        "tables": [[list(row) for row in table] for table in tables],
        "notes": kept.get("notes") or {"heading": file.stem, "order": 99},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    write_whole(file, _FILE_HEAD + text)


def benchmarks_page(folder: Path) -> str:
    """The page of all that was measured.

    Raises:
        DataError: a file has not the form that `record` writes.
    """
    found = [(path, yaml.safe_load(path.read_text(encoding="utf-8")))
             for path in sorted(folder.glob("*.yaml"))]  # fmt: skip
    for path, values in found:
        if not isinstance(values, dict) or values.keys() != _KEYS:
            raise DataError(f"{path} must hold {', '.join(sorted(_KEYS))}")
    found.sort(key=lambda pair: pair[1]["notes"]["order"])
    return "\n".join([_HEAD, *(_section(values) for _, values in found)])


def _section(values: Mapping[str, Any]) -> str:
    notes = values["notes"]
    tables = ["\n".join(_lines(table)) for table in values["tables"]]
    command = f"```bash\n{values['command'].strip()}\n```"
    parts = [f"## {notes['heading']}", notes.get("before", "").strip(), command, *tables,
             f"{values['origin']}.", notes.get("after", "").strip()]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _lines(table: Sequence[Sequence[str]]) -> list[str]:
    head, *rows = table
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
