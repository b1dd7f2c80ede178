"""Data files: where those of a data set must lie; standard library only, for early checks."""

import os
from pathlib import Path

from qat.errors import DataError, SpecError
from qat.spec.data import FAMILIES, DataSpec, Layout
from qat.spec.extras import require_images
from qat.spec.image_lists import are_listed, image_lists

DEFAULT_ROOT = "datasets"


def root_of(options: DataSpec) -> Path:
    """The folder `data.root` as an absolute path; ./datasets if it is null.

    Raises:
        SpecError: there is no root, and the family has none of its own.
    """
    layout = FAMILIES[options.name].layout
    if options.root is None and layout is not None and layout.needs_root:
        raise SpecError(f"data.root must be given for data={options.name}; {layout.source}")
    return Path(options.root or DEFAULT_ROOT).expanduser().absolute()


def home_of(options: DataSpec) -> Path:
    """The folder that directly holds the files of the data set.

    Raises:
        SpecError: as `root_of`.
        DataError: something is missing there; says what, and how to get it.
    """
    family = FAMILIES[options.name]
    layout = family.layout or Layout(needs=())
    root = root_of(options)
    homes = [root / home for home in layout.homes]
    for home in homes:
        if all(os.path.exists(home / need) for need in layout.needs):
            return home
    missing = next(n for n in layout.needs if not os.path.exists(homes[0] / n))
    cure = layout.source or "set data.root=<folder> or data.download=true"
    raise DataError(
        f"data={options.name}: {family.title} is not in data.root={root} "
        f"(no {homes[0] / missing}); {cure}"
    )


def check_data(options: DataSpec) -> None:
    """Check that the data are there or can be downloaded; reads no image and imports no torch.

    Raises:
        SpecError: as `root_of` and `image_lists`, or the package that has the images is not
            installed.
        DataError: as `home_of` and `image_lists`.
    """
    package, layout = FAMILIES[options.name].package, FAMILIES[options.name].layout
    if package is not None:
        require_images(options.name, package)
    if layout is None or (options.download and not layout.source):
        return
    home = home_of(options)
    if are_listed(options):
        image_lists(options, home)
    elif layout.classes_in is not None:
        class_names(part_folders(home)[layout.classes_in])


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
