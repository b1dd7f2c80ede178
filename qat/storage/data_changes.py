"""Data of a run and data of now, compared: what differs, in one sentence."""

import os
from collections.abc import Iterator, Mapping, Sequence, Set

from qat.storage.data_record import PARTS, DataRecord, PartRecord, class_hashes

Files = Mapping[str, tuple[int | None, int]]

_NO_CLASS = ""  # stands for all files where no label was read
_NAMED = 3  # files or classes of one kind in a sentence
_IN = {
    part: (f"was in the run's {title} part", f"were in the run's {title} part")
    for part, title in (("train", "training"), ("validation", "validation"), ("test", "test"))
}


def data_changes(
    before: DataRecord, now: DataRecord, *, parts: Sequence[str] = PARTS
) -> dict[str, str]:
    """What differs, in words: of `data`, else of `classes`, else of each part.

    Files are told apart by name, label and size; where there are too many in one of the two, by the
    names of each class; of built-in sets the number of images is compared.

    Args:
        before: of a run.
        now: of the same data set today.
        parts: that are compared.

    >>> part = PartRecord(count=2, files={"a/1.png": (0, 9), "b/1.png": (1, 9)})
    >>> one = PartRecord(count=1, files={"b/1.png": (1, 8)})
    >>> was = DataRecord(name="x", split="path", classes=("a", "b"), parts={"test": part})
    >>> is_ = DataRecord(name="x", split="path", classes=("a", "b"), parts={"test": one})
    >>> data_changes(was, is_, parts=["test"])
    {'test': 'a/1.png is gone, b/1.png has another size'}
    """
    if before.name != now.name:
        return {"data": f"data={_shown(now.name)} instead of {_shown(before.name)}"}
    if before.classes != now.classes:
        return {"classes": _classes(before.classes, now.classes)}
    was_in = {file: name for name, part in before.parts.items() for file in part.files}
    here = {file for part in now.parts.values() for file in part.files}
    found = {n: _part(n, before.parts[n], now.parts[n], was_in, here, now.classes) for n in parts}
    return {name: words for name, words in found.items() if words}


def sentence(changes: Mapping[str, str]) -> str:
    """All changes in one line.

    >>> sentence({"train": "a/1.png is gone", "test": "10 images instead of 9"})
    'train: a/1.png is gone; test: 10 images instead of 9'
    """
    alone = ("data", "classes")  # say themselves what they are of
    return "; ".join(w if name in alone else f"{name}: {w}" for name, w in changes.items())


def _classes(before: Sequence[str], now: Sequence[str]) -> str:
    gone, new = sorted({*before} - {*now}), sorted({*now} - {*before})
    if not gone and not new:
        return "the classes are in another order"
    return _joined(
        _listed("class", gone, "is gone", "are gone"), _listed("class", new, "is new", "are new")
    )


def _part(
    name: str,
    before: PartRecord,
    now: PartRecord,
    was_in: Mapping[str, str],
    here: Set[str],
    classes: Sequence[str],
) -> str:
    """What differs in one part.

    Args:
        name: of the part.
        before: of the run.
        now: of today.
        was_in: file -> part of the run that it was in.
        here: files of all parts of today.
        classes: their names, by label, the same for both.
    """
    if before.source != now.source:
        counts = "as many" if now.count == before.count else f"{now.count}, not {before.count}"
        return f"other images without labels ({counts})"
    if before.hashes or now.hashes:
        return _by_class(before, now, classes)
    if not (before.files and now.files):
        return _count(before, now)
    gone = [file for file in before.files if file not in here]
    new = [file for file in now.files if file not in was_in]
    # one that was in another part is told of where it is now
    moved = [
        _listed("file", [f for f in now.files if was_in.get(f) == other], *words)
        for other, words in _IN.items()
        if other != name
    ]
    return _joined(
        _listed("file", gone, "is gone", "are gone"),
        _listed("file", new, "is new", "are new"),
        *moved,
        *_altered(before.files, now.files),
    )


def _by_class(before: PartRecord, now: PartRecord, classes: Sequence[str]) -> str:
    """The classes that have other files, of two parts of which one is known by hashes only."""
    has_labels = _NO_CLASS not in before.hashes and _NO_CLASS not in now.hashes
    was, is_ = (_hashes(part, classes if has_labels else ()) for part in (before, now))
    if not (was and is_) or (_NO_CLASS in was) != (_NO_CLASS in is_):  # nothing else is known
        return _count(before, now)
    others = [key for key in sorted(was.keys() | is_.keys()) if was.get(key) != is_.get(key)]
    if others == [_NO_CLASS]:
        return "other files"
    return _listed("class", others, "has other files", "have other files")


def _hashes(part: PartRecord, classes: Sequence[str]) -> Mapping[str, str]:
    """A part's hashes, made of the names where it is known by these; of all without classes."""
    if part.hashes or not part.files:
        return part.hashes
    labels = [label for label, _ in part.files.values()]
    if classes and not all(label is not None and 0 <= label < len(classes) for label in labels):
        return {}
    titles = [classes[label or 0] for label in labels] if classes else [_NO_CLASS] * len(labels)
    return class_hashes(zip(map(os.fsencode, part.files), titles, strict=True))


def _count(before: PartRecord, now: PartRecord) -> str:
    return "" if before.count == now.count else f"{now.count} images instead of {before.count}"


def _altered(before: Files, now: Files) -> Iterator[str]:
    both = [file for file in now if file in before]
    for index, what in enumerate(("class", "size")):
        # a label that was not read is None
        other = [f for f in both if before[f][index] not in (None, now[f][index])]
        yield _listed("file", other, f"has another {what}", f"have another {what}")


def _listed(noun: str, names: Sequence[str], one: str, several: str) -> str:
    """Names and what is the matter with them; nothing without names."""
    known = ", ".join(map(_shown, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
    if len(names) < 2:
        return f"{'' if noun == 'file' else f'{noun} '}{known} {one}" if names else ""
    return f"{len(names)} {'classes' if noun == 'class' else 'files'} {several} ({known})"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _shown(name: str) -> str:
    """A name that a terminal may be shown: what a folder holds may be anything."""
    return "".join(c if c.isprintable() else "?" for c in name)
