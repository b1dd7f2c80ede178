"""Where the files of a data set must lie; standard library only, for checks before a run."""

import os
from dataclasses import dataclass
from pathlib import Path

from qat.errors import DataError, SpecError
from qat.spec.data import DataSpec

DEFAULT_ROOT = "datasets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What must exist on disk.

    Attributes:
        title: name of the data set in messages.
        needs: paths below the home that must exist.
        homes: folders below the root that may be the home, the first with all needs wins.
        source: how to get the data; empty if data.download=true does.
    """

    title: str
    needs: tuple[str, ...]
    homes: tuple[str, ...] = ("",)
    source: str = ""


_IDX = tuple(
    f"raw/{part}-{content}-ubyte"
    for part in ("train", "t10k")
    for content in ("images-idx3", "labels-idx1")
)

LAYOUTS: dict[str, Layout] = {
    "mnist": Layout(title="MNIST", needs=_IDX, homes=("MNIST",)),
    "fashion_mnist": Layout(title="FashionMNIST", needs=_IDX, homes=("FashionMNIST",)),
    "cifar10": Layout(
        title="CIFAR-10",
        needs=("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))),
        homes=("cifar-10-batches-py",),
    ),
    "cifar100": Layout(
        title="CIFAR-100", needs=("meta", "train", "test"), homes=("cifar-100-python",)
    ),
    "tiny_imagenet": Layout(
        title="Tiny-ImageNet",
        needs=("wnids.txt", "words.txt", "train", "val/val_annotations.txt"),
        homes=("tiny-imagenet-200", ""),
    ),
    "imagenet": Layout(
        title="ImageNet",
        needs=("train", "val"),
        homes=("", "imagenet"),
        source="get it from image-net.org and set data.root=<folder> that holds "
        "train/<class>/*.JPEG and val/<class>/*.JPEG",
    ),
    "image_folder": Layout(
        title="your image folder",
        needs=("",),
        source="set data.root=<folder> that holds <class>/<images>, or train/<class>/<images> "
        "and val/<class>/<images>",
    ),
}


def root_of(options: DataSpec) -> Path:
    """The folder `data.root` as an absolute path; ./datasets if it is null.

    Raises:
        SpecError: data=image_folder without a root.
    """
    if options.root is None and options.name == "image_folder":
        source = LAYOUTS["image_folder"].source
        raise SpecError(f"data.root must be given for data=image_folder; {source}")
    return Path(options.root or DEFAULT_ROOT).expanduser().absolute()


def home_of(options: DataSpec) -> Path:
    """The folder that directly holds the files of the data set.

    Raises:
        SpecError: as `root_of`.
        DataError: something is missing there; says what, and how to get it.
    """
    layout = LAYOUTS[options.name]
    root = root_of(options)
    homes = [root / home for home in layout.homes]
    for home in homes:
        if all(os.path.exists(home / need) for need in layout.needs):
            return home
    missing = next(n for n in layout.needs if not os.path.exists(homes[0] / n))
    cure = layout.source or "set data.root=<folder> or data.download=true"
    raise DataError(
        f"data={options.name}: {layout.title} is not in data.root={root} "
        f"(no {homes[0] / missing}); {cure}"
    )


def check_data(options: DataSpec) -> None:
    """Check that the data are there or can be downloaded; reads no image and imports no torch.

    Raises:
        SpecError: as `root_of`.
        DataError: as `home_of`.
    """
    layout = LAYOUTS.get(options.name)
    if layout is None or (options.download and not layout.source):
        return
    home = home_of(options)
    if options.name == "imagenet":
        part_folders(home)
        class_names(home / "val")
    if options.name == "image_folder":
        class_names(part_folders(home)["train"])


def part_folders(home: Path) -> dict[str, Path]:
    """The folders of the parts: train and val, perhaps test; or only train, which is all.

    Raises:
        DataError: there is a train folder, but no val folder.
    """
    if not (home / "train").is_dir():
        return {"train": home}
    if not (home / "val").is_dir():
        raise DataError(f"{home} has a folder train, but no folder val; add val/<class>/<images>")
    return {part: home / part for part in ("train", "val", "test") if (home / part).is_dir()}


def class_names(folder: Path) -> tuple[str, ...]:
    """The names of the class folders, sorted; hidden ones are no classes.

    Raises:
        DataError: the folder cannot be listed or holds fewer than two.
    """
    try:
        entries = [e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != "."]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}); check data.root") from error
    if len(entries) < 2:
        raise DataError(
            f"{folder} must hold at least 2 class folders, has {len(entries)}; "
            "put the images of each class into a folder of its own and set data.root"
        )
    return tuple(sorted(entries))
