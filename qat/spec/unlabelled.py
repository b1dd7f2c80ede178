"""Unlabelled-image options: the config group `unlabelled`; standard library only."""

import ast
import difflib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from qat.errors import DataError, SpecError
from qat.spec.extras import parsed_source
from qat.spec.schema import check, option

ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskImages:
    """The training part of the task itself, labels removed.

    Attributes:
        share: fraction of it, (0, 1]; always the same ones, chosen without a look at labels.
    """

    share: float = option(1.0, above=0, high=1)

    def __post_init__(self) -> None:
        check(self, "unlabelled.task")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderImages:
    """Every image file in and below a folder.

    Attributes:
        root: the folder.
        unreadable: refuse stops before training if a file is no readable image (of more than 50,000
            only headers are read then); skip decodes every file once and leaves those out.
    """

    root: str | None = None
    unreadable: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        check(self, "unlabelled.folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Photographs:
    """Random square patches of the two photographs that ship inside scikit-learn.

    Attributes:
        patches: their number.
        largest: sides are drawn between the task's image size and this many times as much.
        stretch: whether the pixels of each patch are stretched to the whole range, as most of a
            photograph is nearly flat at the scale of small images.
        seed: of places and sides.
    """

    patches: int = option(1079, low=1)
    largest: float = option(8.0, low=1, high=50)
    stretch: bool = True
    seed: int = option(0, low=0)

    def __post_init__(self) -> None:
        check(self, "unlabelled.photographs")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchvisionImages:
    """Any data set of torchvision.datasets, labels removed.

    Attributes:
        name: its class, e.g. CIFAR10, STL10, SVHN.
        root: folder of the data; null means ./datasets.
        download: whether a missing set may be fetched from the network.
        options: further arguments of the class, e.g. {split: unlabeled}.
    """

    name: str | None = None
    root: str | None = None
    download: bool = False
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check(self, "unlabelled.torchvision")
        for key in {"root", "download"} & set(self.options or {}):
            raise SpecError(
                f"unlabelled.torchvision.options.{key} has a place of its own; use "
                f"unlabelled.torchvision.{key}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabelledSpec:
    """The config group `unlabelled`: sources of images, mixed if there are several.

    Attributes:
        task: see TaskImages.
        folder: see FolderImages.
        photographs: see Photographs.
        torchvision: see TorchvisionImages.
    """

    task: TaskImages | None = None
    folder: FolderImages | None = None
    photographs: Photographs | None = None
    torchvision: TorchvisionImages | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            known = ", ".join(f.name for f in fields(self))
            raise SpecError(f"unlabelled needs a source of images: one or more of {known}")

    @property
    def sources(self) -> dict[str, Any]:
        """Name -> options of each source that is set, in a fixed order."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: options for name, options in found.items() if options is not None}


def check_unlabelled(spec: UnlabelledSpec) -> None:
    """Check that the sources exist, as far as is possible without torch; opens no image.

    Raises:
        SpecError: an option that must be given is not, or no data set has this name.
        DataError: a folder is missing or holds no image.
    """
    if spec.folder is not None:
        check_folder(spec.folder)
    if spec.torchvision is not None:
        check_torchvision(spec.torchvision)


def check_folder(options: FolderImages) -> Path:
    """The folder of a source, which holds at least one image file.

    Raises:
        SpecError: no folder is given.
        DataError: it does not exist or holds no image file.
    """
    if options.root is None:
        raise SpecError("unlabelled.folder.root must be given; set it to a folder of images")
    root = Path(options.root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"unlabelled.folder.root={root} is no folder; set it to one of images")
    if next(images_below(root), None) is None:
        raise DataError(
            f"unlabelled.folder.root={root} holds no image ({' '.join(ENDINGS)}); add some, or set "
            "another folder"
        )
    return root


def check_torchvision(options: TorchvisionImages) -> str:
    """The name of a data set of torchvision, checked without an import of torchvision.

    Raises:
        SpecError: none is given, or there is none of this name.
    """
    if options.name is None:
        raise SpecError("unlabelled.torchvision.name must be given, e.g. CIFAR10 or STL10")
    known = _torchvision_names()
    if options.name not in known:
        close = difflib.get_close_matches(options.name, known, n=3, cutoff=0.5)
        raise SpecError(
            f"unlabelled.torchvision.name={options.name} is no class of torchvision.datasets; "
            + (f"did you mean {', '.join(close)}?" if close else "use e.g. CIFAR10, STL10, SVHN")
        )
    return options.name


def images_below(folder: Path) -> Iterator[str]:
    """Paths of the image files in and below a folder, in no order; hidden ones are left out.

    Raises:
        DataError: a folder cannot be listed.
    """
    return (path for path in files_below(folder) if path.lower().endswith(ENDINGS))


def files_below(folder: Path) -> Iterator[str]:
    """Paths of the files in and below a folder, in no order; hidden ones and pipes are left out.

    Links are followed, and a folder that is met again on the way is not entered again.

    Raises:
        DataError: a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # sorted: which of two links to a folder is entered must not depend on the file system
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(".") and not stat.S_ISFIFO(os.lstat(path).st_mode):
                yield path


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename} cannot be listed ({error.strerror}); make it readable or remove it"
    ) from error


def _torchvision_names() -> list[str]:
    """Names of the classes in torchvision.datasets, read from its source."""
    source = parsed_source("torchvision", "datasets/__init__.py")
    for node in source.body if source else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if name[0].isupper()]
    return []
