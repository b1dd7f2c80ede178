"""CSV tables: written whole, grown by rows and cut back on resume, read whatever their state."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qat.errors import CheckpointError, QatError
from qat.storage.atomic import replacing, write_whole
from qat.storage.reading import is_there, read_regular

# some hundred thousand rows; to show more takes gigabytes
_MAX_CSV = 20_000_000


class GrowingCsv:
    """A table that grows by rows, flushed at once, and goes back to an earlier position.

    A row with a new column rewrites the file (atomically) under a longer header. A file that is
    already there is continued, never wiped, until `rewind` is called.

    Args:
        path: The file. Its folder, if there is none yet, is made on the first write; once there it
            must stay, and so must the file.
        columns: The header of a new file.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._first = list(columns)
        self._columns: list[str] | None = None
        self._rows = 0
        self._is_on_disk = False
        self._has_folder = path.parent.is_dir()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, each by column; what a row lacks is left empty.

        Raises:
            QatError: The file cannot be written, or was deleted.
        """
        columns = self._known_columns()
        new = [key for key in dict.fromkeys(k for row in rows for k in row) if key not in columns]
        if new or self._rows == 0:
            self._write_all([*columns, *new], self._read()[1])
        self._write([[row.get(key, "") for key in self._known_columns()] for row in rows])

    def position(self) -> dict[str, Any]:
        """Rows and columns written so far, after bringing them to the disk: plain values.

        Raises:
            QatError: The file cannot be read.
        """
        columns = self._known_columns()
        if not self._is_on_disk and self._rows:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
            self._is_on_disk = True
        return {"rows": self._rows, "columns": list(columns)}

    def rewind(self, position: Mapping[str, Any] | None = None) -> None:
        """Drop every row written after `position`; None drops them all.

        Raises:
            CheckpointError: The file lost rows that were there at `position`.
            QatError: The file cannot be written.
        """
        rows, columns = (position["rows"], position["columns"]) if position else (0, self._first)
        if rows == 0 and not self._path.exists():
            self._columns, self._rows = list(self._first), 0
            return
        header, lines = self._read()
        if len(lines) < rows or header[: len(columns)] != columns:
            raise CheckpointError(
                f"{self._path} holds {len(lines)} rows under {len(header)} columns, the checkpoint "
                f"knows {rows} under {len(columns)}; restore the file or delete it together with "
                "the checkpoints"
            )
        self._write_all(columns, [line[: len(columns)] for line in lines[:rows]])

    def _known_columns(self) -> list[str]:
        if self._columns is None:
            self._columns, lines = self._read()
            self._rows = len(lines)
        return self._columns

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """Header and complete rows of the file; a last line cut by a kill is left out."""
        try:
            if not is_there(self._path):
                return list(self._first), []
            text = read_regular(self._path).decode()
        except (CheckpointError, UnicodeDecodeError) as error:
            raise QatError(f"cannot read {self._path}: {error}") from error
        whole = text[: text.rfind("\n") + 1]
        lines = list(csv.reader(io.StringIO(whole, newline="")))
        return (lines[0], lines[1:]) if lines else (list(self._first), [])

    def _write_all(self, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
        if not self._has_folder:
            with suppress(OSError):  # told when the file cannot be written
                self._path.parent.mkdir(parents=True, exist_ok=True)
            self._has_folder = True
        else:  # or it would be made anew, with nothing in it but this table
            self._expect(self._path if self._rows else self._path.parent)
        padded = [[*line, *[""] * (len(columns) - len(line))] for line in lines]
        with replacing(self._path) as file:
            file.write(_csv([columns, *padded]).encode())
        self._columns, self._rows = list(columns), len(lines)
        self._is_on_disk = True  # `replacing` has seen to it

    def _write(self, lines: Sequence[Sequence[Any]]) -> None:
        self._is_on_disk = False
        self._expect(self._path)  # "a" would make another one
        try:
            with self._path.open("ab") as file:
                file.write(_csv(lines).encode())
        except OSError as error:
            raise self._unwritable(error) from error
        self._rows += len(lines)

    def _expect(self, path: Path) -> None:
        """Raise QatError unless what was there is there."""
        try:
            path.stat()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> QatError:
        return QatError(
            f"cannot write {self._path}: {error.strerror}; free space and resume the run"
        )


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], *, newline: str = "\n") -> None:
    """Write rows under a header of all their keys; None and what a row lacks are empty cells."""
    columns = dict.fromkeys(key for row in rows for key in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _csv([columns, *([row.get(k) for k in columns] for row in rows)], newline))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table by column, of what is whole by now; none if it is missing or damaged.

    A cell that is missing is empty, one beyond the columns is left out, and so is a last line that
    is half written.
    """
    try:
        content = read_regular(path, most=_MAX_CSV) if is_there(path) else b""
        whole = content[: content.rfind(b"\n") + 1].replace(b"\0", b"").decode(errors="replace")
        rows = list(csv.DictReader(io.StringIO(whole, newline="")))
    except (CheckpointError, csv.Error):
        return []
    return [{k: v or "" for k, v in row.items() if k is not None} for row in rows]


def _csv(lines: Iterable[Iterable[Any]], newline: str = "\n") -> str:
    """Lines as text; floats keep all their digits, so that equal files mean equal runs."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=newline).writerows(lines)
    return text.getvalue()
