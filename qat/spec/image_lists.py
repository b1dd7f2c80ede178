"""Lists of image files: which images are in which part, of which class; standard library only."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qat.errors import DataError, SpecError, shown
from qat.spec.data import DataSpec

# part -> the option that lists its files
LISTS = {"train": "train_list", "val": "val_list", "test": "test_list"}
# how a table names the parts
_PART_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_HEADERS = (["path", "label"], ["path", "label", "part"])
_NAMED = 3  # files in a sentence

# path below the root -> name of the class
Labelled = dict[str, str]


def are_listed(options: DataSpec) -> bool:
    """Whether files say which images there are, not folders."""
    return options.labels is not None or any(_list_files(options))


def image_lists(options: DataSpec, root: Path) -> dict[str, Labelled]:
    """The images that the files of `data.labels` and `data.*_list` name, by part.

    A table `data.labels` has the columns path and label, and perhaps part. Without one the first
    folder of a path is its class. The images of the part train are those of `data.train_list`; of
    a table, where that is not given, the rows that no other list has.

    Args:
        options: of data=image_folder.
        root: absolute, where relative paths begin: those of the files, and those in them.

    Returns:
        Part -> path below the root -> class, in the order of the files: train, and those of val
        and test that are said.

    Raises:
        SpecError: the parts are said twice, or what is for training is not said.
        DataError: a file is missing or cannot be read, or a line of it is wrong; an image is
            named twice, lies outside of the root or is not there; a class has no image to train on.
    """
    lists = {part: _paths(root, key, file) for part, key, file in _list_files(options)}
    table, parts = _table(root, options.labels) if options.labels is not None else ({}, {})
    if parts and lists:
        raise SpecError(
            f"data.labels={options.labels} has a column part, and data.{LISTS[next(iter(lists))]} "
            "names a part, too; leave one of both out"
        )
    if options.labels is None:
        if "train" not in lists:
            raise SpecError(
                "data.val_list and data.test_list need data.train_list, or the images of "
                "data.labels=FILE.csv"
            )
        found = {part: {path: _folder_of(path) for path in paths} for part, paths in lists.items()}
    else:
        found = parts or _picked(table, lists)
    _check_parts(found, root)
    return found


def classes_of(parts: Mapping[str, Labelled]) -> tuple[str, ...]:
    """The names of the classes, sorted as text: those of the training part."""
    return tuple(sorted(set(parts["train"].values())))


def _list_files(options: DataSpec) -> Iterator[tuple[str, str, str]]:
    """(part, option, file) of the lists that are given."""
    for part, key in LISTS.items():
        if (file := getattr(options, key)) is not None:
            yield part, f"data.{key}", file


@contextmanager
def _opened(root: Path, key: str, file: str) -> Iterator[IO[str]]:
    """A file of lines; what goes wrong in the block is said of it."""
    path = root / Path(file).expanduser()
    if not path.is_file():
        raise DataError(
            f"{key}={shown(file)}: there is no file {shown(path)}; give its path from data.root, "
            "or from /"
        )
    try:
        # names of files as the file system has them; spreadsheets begin with a byte order mark
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            yield lines
    except (OSError, csv.Error) as error:
        raise DataError(f"{shown(path)} cannot be read ({error}); correct {key}") from error


def _paths(root: Path, key: str, file: str) -> list[str]:
    """The paths below the root that the lines of a file name; empty lines name none."""
    found: dict[str, None] = {}
    with _opened(root, key, file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{key}={shown(file)} line {number}"
            path = _below(root, line.strip(), where)
            if path in found:
                raise _twice(where, path)
            found[path] = None
    if not found:
        raise DataError(f"{key}={shown(file)} names no image; write a path on each line")
    return list(found)


def _table(root: Path, file: str) -> tuple[Labelled, dict[str, Labelled]]:
    """Path -> class of a table, and the same by part if it has the column."""
    table: Labelled = {}
    parts: dict[str, Labelled] = {}
    with _opened(root, "data.labels", file) as lines:
        rows = csv.reader(lines)
        header = [name.strip() for name in next(rows, [])]
        if header not in _HEADERS:
            raise DataError(
                f"data.labels={shown(file)} must begin with the line path,label or "
                f"path,label,part; got {shown(','.join(header))!r}"
            )
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            where = f"data.labels={shown(file)} line {rows.line_num}"
            path, label, *part = _row(row, header, where)
            path = _below(root, path, where)
            if path in table:
                raise _twice(where, path)
            table[path] = label
            if part:
                parts.setdefault(_PART_NAMES[part[0]], {})[path] = label
    if not table:
        raise DataError(f"data.labels={shown(file)} names no image; add rows of path,label")
    return table, parts


def _row(row: Sequence[str], header: Sequence[str], where: str) -> list[str]:
    cells = [cell.strip() for cell in row]
    if len(cells) != len(header):
        raise DataError(
            f"{where} has {len(cells)} columns, the header {len(header)}; put names that hold a "
            'comma into quotes, "a, b"'
        )
    if not cells[1] or not cells[1].isprintable():
        raise DataError(f"{where}: the label of {shown(cells[0])} is empty or cannot be printed")
    if len(cells) == 3 and cells[2] not in _PART_NAMES:
        raise DataError(f"{where}: part must be train, val or test; got {shown(cells[2])!r}")
    return cells


def _below(root: Path, path: str, where: str) -> str:
    """A path from the root on, without detours."""
    home = os.path.normpath(root)
    found = os.path.relpath(os.path.normpath(os.path.join(home, path)), home)
    if found == os.curdir or found.split(os.sep, 1)[0] == os.pardir:
        raise DataError(
            f"{where}: {shown(path)} is not below data.root={shown(root)}; change either"
        )
    return found


def _twice(where: str, path: str) -> DataError:
    return DataError(f"{where} names {shown(path)} again; leave one of both out")


def _folder_of(path: str) -> str:
    folder, _, file = path.partition(os.sep)
    if not file:
        raise DataError(
            f"{shown(path)} lies in no folder that would be its class; give the classes by "
            "data.labels=FILE.csv"
        )
    return folder


def _picked(table: Labelled, lists: Mapping[str, Sequence[str]]) -> dict[str, Labelled]:
    """The rows of a table, by the lists; those that no list has are for training."""
    for part, paths in lists.items():
        if (stranger := next((path for path in paths if path not in table), None)) is not None:
            raise DataError(
                f"data.{LISTS[part]} names {shown(stranger)}, which data.labels does not; add a "
                "row for it"
            )
    found = {part: {path: table[path] for path in paths} for part, paths in lists.items()}
    taken = {path for paths in lists.values() for path in paths}
    rest = {path: label for path, label in table.items() if path not in taken}
    return {"train": rest} | found


def _check_parts(parts: Mapping[str, Labelled], root: Path) -> None:
    if not parts.get("train"):
        raise DataError("data.labels and data.train_list leave no image to train on; add some")
    owners: dict[str, str] = {}
    for part, paths in parts.items():
        for path in paths:
            if owners.setdefault(path, part) != part:
                raise DataError(
                    f"{shown(path)} is listed for {owners[path]} and for {part}; an image belongs "
                    "to one part"
                )
    _check_classes(parts)
    missing = [path for path in owners if not os.path.isfile(root / path)]
    if missing:
        first = ", ".join(map(shown, missing[:_NAMED])) + (" ..." if len(missing) > _NAMED else "")
        raise DataError(
            f"{len(missing):,} of {len(owners):,} listed images are not in "
            f"data.root={shown(root)}: {first}; bring them back, or correct the lists"
        )


def _check_classes(parts: Mapping[str, Labelled]) -> None:
    classes = classes_of(parts)
    if len(classes) < 2:
        raise DataError(
            f"the images to train on are of one class, {shown(classes[0])!r}; list others, too "
            "(without data.labels the first folder of a path below data.root is its class)"
        )
    for part, paths in parts.items():
        for path, label in paths.items():
            if label not in classes:
                raise DataError(
                    f"{shown(path)} in the part {part} is of the class {shown(label)!r}, of which "
                    "no image is in train; add one, or leave it out"
                )
