"""Scan of image files before training: which cannot be read, and what else is worth a look."""

import gzip
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from qat.data.image_files import FORMAT_OF, UnreadableImageError, check_image
from qat.data.loader import leave_group
from qat.errors import DataError
from qat.storage.atomic import write_whole

DECODED = 50_000  # files that are decoded where nothing is said; of more only headers are read
_FEW = 500  # files for which no worker is started
_WORTH_KEEPING = 1.0  # seconds
_NAMED = 3  # files in a sentence
_RARE = 10  # images of a class that needs no word

Depth = Literal["decode", "headers"]
# format, or what is wrong
Seen = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Scan:
    """What was seen of some image files.

    Attributes:
        seen: path -> (format, what is wrong); one of both is empty.
        depth: what was read of each file.
        seconds: that it took.
        known: files that an earlier scan had seen.
    """

    seen: Mapping[str, Seen]
    depth: Depth
    seconds: float
    known: int = 0

    @property
    def problems(self) -> dict[str, str]:
        """Path -> what is wrong, of the files that cannot be read."""
        return {path: wrong for path, (_, wrong) in self.seen.items() if wrong}

    @property
    def misnamed(self) -> dict[str, str]:
        """Path -> format, of the files that are of another one than their names say."""
        formats = {path: kind for path, (kind, _) in self.seen.items() if kind}
        ending = {path: os.path.splitext(path)[1].lower() for path in formats}
        return {p: kind for p, kind in formats.items() if FORMAT_OF.get(ending[p]) != kind}

    @property
    def cost(self) -> str:
        """What was read, and how long it took."""
        what = "decoded" if self.depth == "decode" else "looked at (data.scan=decode reads all)"
        known = f", {self.known:,} of them in an earlier scan" if self.known else ""
        return f"{len(self.seen):,} files {what} in {self.seconds:.1f} s{known}"


def scan(paths: Sequence[str], depth: Depth | Literal["auto"], *, workers: int = 0) -> Scan:
    """Look at image files; about 1 ms to decode one of 100 kB, 0.1 ms for a header.

    What took more than a second is kept below ~/.cache/qat, and a file that has the size and the
    time of change that it had is not read again, unless it was unreadable.

    Args:
        paths: of the files.
        depth: decode all of each file, or read its header only; auto decodes up to DECODED files.
        workers: processes.
    """
    start = time.monotonic()
    if depth == "auto":
        depth = "decode" if len(paths) <= DECODED else "headers"
    stamps = {path: _stamp(path) for path in paths}
    place = _cache_of(paths, depth)
    kept = _read_cache(place)
    known = {
        path: (str(kept[path][1]), str(kept[path][2]))
        for path, stamp in stamps.items()
        if path in kept and kept[path][0] == stamp
    }
    new = [path for path in stamps if path not in known]
    found = known | dict(zip(new, _looked_at(new, depth, workers), strict=True))
    seconds = time.monotonic() - start
    if new and seconds > _WORTH_KEEPING:
        # not the unreadable ones: permissions and disks are mended without a trace in the stamp
        sound = (path for path in stamps if not found[path][1])
        _write_cache(place, {path: (stamps[path], *found[path]) for path in sound})
    return Scan({path: found[path] for path in stamps}, depth, seconds, len(known))


class _Looks(Dataset[Seen]):
    """What is seen of a file, by its number."""

    def __init__(self, paths: Sequence[str], depth: Depth) -> None:
        self.paths, self.depth = paths, depth

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Seen:
        try:
            return check_image(self.paths[index], decode=self.depth == "decode"), ""
        except UnreadableImageError as error:
            return "", error.reason


def _looked_at(paths: Sequence[str], depth: Depth, workers: int) -> list[Seen]:
    if not paths:
        return []
    loader: DataLoader[Seen] = DataLoader(
        _Looks(paths, depth),
        batch_size=32,
        num_workers=workers if len(paths) > _FEW else 0,
        collate_fn=list,
        worker_init_fn=leave_group,
        generator=torch.Generator().manual_seed(0),  # the global one is the run's
    )
    return [(kind, wrong) for batch in loader for kind, wrong in batch]


def _stamp(path: str) -> list[int]:
    with suppress(OSError):
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    return [-1, -1]


def _cache_of(paths: Sequence[str], depth: Depth) -> Path:
    """Where the scan of a set of files is kept: by the folder that holds them all."""
    import PIL

    home = os.path.commonpath(paths) if paths else ""
    key = hashlib.sha256(os.fsencode(f"{home}\0{depth}\0{PIL.__version__}")).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "qat" / "scans" / f"{key}.json.gz"


def _read_cache(place: Path) -> dict[str, Any]:
    """What an earlier scan has seen; nothing if that cannot be read."""
    with suppress(OSError, EOFError, ValueError, RecursionError):
        content = json.loads(gzip.decompress(place.read_bytes()))
        if isinstance(content, dict):
            return {p: v for p, v in content.items() if isinstance(v, list) and len(v) == 3}
    return {}


def _write_cache(place: Path, content: Mapping[str, Any]) -> None:
    with suppress(OSError):  # a cache that cannot be written is none
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, gzip.compress(json.dumps(content).encode()))


def check_readable(found: Scan, key: str = "data.unreadable") -> None:
    """Raise DataError if a file cannot be read; says which, why, and the cures.

    Args:
        found: of the files.
        key: of the option that leaves them out.
    """
    problems = found.problems
    if problems:
        raise DataError(
            f"{len(problems):,} of {len(found.seen):,} image files cannot be read: "
            f"{named(problems)}; replace or remove them, or leave them out by {key}=skip"
        )


def named(files: Mapping[str, str]) -> str:
    """The first of some files and what is said of them."""
    first = [f"{path} ({words})" for path, words in list(files.items())[:_NAMED]]
    text = ", ".join([*first, "..."] if len(files) > _NAMED else first)
    return "".join(c if c.isprintable() else "?" for c in text)


def remarks(
    found: Scan, counts: Mapping[str, int], others: Counter[str], *, few: int = _RARE
) -> str:
    """What else is worth a look, in one line; empty if nothing is.

    Args:
        found: of the files.
        counts: class -> its images, in all parts.
        others: ending -> number of the files that are no images by their names.
        few: images of a class that are not told of.
    """
    told = []
    if found.problems:
        told.append(f"unreadable and left out: {_counted(found.problems)}")
    if found.misnamed:
        told.append(f"of another format than their names say: {_counted(found.misnamed)}")
    if others:
        endings = {ending or "no ending": f"{n:,}" for ending, n in others.most_common()}
        told.append(f"no images by their names: {others.total():,} files, {named(endings)}")
    rare = {name: str(count) for name, count in counts.items() if count < few}
    if rare:
        told.append(f"classes of fewer than {few} images: {named(rare)}")
    return "; ".join(told)


def _counted(files: Mapping[str, str]) -> str:
    return f"{len(files):,} file{'s' if len(files) > 1 else ''}, {named(files)}"
