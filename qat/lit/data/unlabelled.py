"""Sources of images without labels, each as raw images in the form of the task."""

import bisect
import difflib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from inspect import signature
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qat.errors import DataError, SpecError
from qat.lit.data.dataset import RawImages
from qat.lit.data.files import UnreadableImageError, images_below, read_image
from qat.lit.data.guard import reading
from qat.lit.data.layout import DEFAULT_ROOT
from qat.unlabelled_spec import (
    FolderImages,
    Photographs,
    TaskImages,
    TorchvisionImages,
    UnlabelledSpec,
    check_folder,
)

_log = logging.getLogger(__name__)
_NAMED = 5  # unreadable files in a message


@dataclass(frozen=True, slots=True)
class Form:
    """What a raw image must look like for the task's own transform.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: height and width in pixels, None for a task that cuts its images itself.
    """

    channels: int
    size: int | None

    def __call__(self, image: Any) -> Any:
        """Convert a PIL image or a tensor (C, H, W): channels, then the middle square."""
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional as V

        if isinstance(image, Tensor) and image.ndim == 2:
            image = image.unsqueeze(0)
        channels = image.shape[0] if isinstance(image, Tensor) else len(image.getbands())
        if channels != self.channels:
            image = V.rgb_to_grayscale(image) if self.channels == 1 else V.grayscale_to_rgb(image)
        if self.size is None:
            return image
        middle = V.center_crop(image, min(V.get_size(image)))
        return V.resize(middle, [self.size, self.size], interpolation=v2.InterpolationMode.BILINEAR)


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Images of any kind, brought to the form of the task as they are asked for.

    Attributes:
        count: their number.
        read: index -> PIL image or tensor (C, H, W).
        form: of the task.
    """

    count: int
    read: Callable[[int], Any]
    form: Callable[[Any], Any]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.form(self.read(index))


@dataclass(frozen=True, slots=True)
class Mixed:
    """Several sources behind one another.

    Attributes:
        sources: none of them empty.
    """

    sources: tuple[RawImages, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> Any:
        ends = list(accumulate(map(len, self.sources)))
        place = bisect.bisect_right(ends, index)
        return self.sources[place][index - (ends[place - 1] if place else 0)]


def mixed(spec: UnlabelledSpec, task: RawImages, form: Form) -> RawImages:
    """All sources of a config, in the order of `spec.sources`.

    Args:
        spec: the sources.
        task: the training images of the task, labels removed.
        form: of the task's raw images.

    Raises:
        SpecError: an option is missing or unknown.
        DataError: images are missing or unreadable.
    """
    found = [_source(options, task, form) for options in spec.sources.values()]
    return found[0] if len(found) == 1 else Mixed(tuple(found))


def _source(options: Any, task: RawImages, form: Form) -> RawImages:
    match options:
        case TaskImages():
            return _Part(task, max(1, round(options.share * len(task))))
        case FolderImages():
            return folder_images(options, form)
        case Photographs():
            return photograph_patches(options, form)
        case TorchvisionImages():
            return torchvision_images(options, form)
        case _:
            raise AssertionError(options)


@dataclass(frozen=True, slots=True)
class _Part:
    """The first images of others."""

    images: RawImages
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.images[index]


def folder_images(options: FolderImages, form: Form) -> Unlabelled:
    """Every image file in and below a folder, sorted by path.

    With unreadable=skip each file is opened and decoded once, and the unreadable are counted and
    left out; about 1 ms for a file of 100 kB on each core.

    Raises:
        SpecError: no folder is given.
        DataError: no image is there, or none is readable.
    """
    root = check_folder(options)
    paths = sorted(images_below(root))
    if options.unreadable == "skip":
        paths = _readable(paths, root)
    # one array instead of a list of a million strings, as FileImages has it
    names = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
    return Unlabelled(len(names), lambda index: read_image(os.fsdecode(names[index])), form)


def _readable(paths: Sequence[str], root: Path) -> list[str]:
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(_problem, paths))
    broken = [path for path, problem in zip(paths, problems, strict=True) if problem]
    if len(broken) == len(paths):
        raise DataError(
            f"unlabelled.folder.root={root}: none of its {len(paths)} images is readable; "
            f"{next(filter(None, problems))}"
        )
    if broken:
        more = " ..." if len(broken) > _NAMED else ""
        _log.warning(
            "unlabelled.folder: %d of %d files are no readable images and are left out: %s%s",
            *(len(broken), len(paths), ", ".join(broken[:_NAMED]), more),
        )
    return [path for path, problem in zip(paths, problems, strict=True) if not problem]


def _problem(path: str) -> str:
    try:
        read_image(path)
    except UnreadableImageError as error:
        return str(error)
    return ""


def photograph_patches(options: Photographs, form: Form) -> Unlabelled:
    """Random square patches of scikit-learn's two photographs (427 x 640, CC BY).

    Photograph, side (its logarithm uniform between the task's size and `largest` times as much)
    and place are drawn once, from `seed`; a patch is then resized to the task's size with
    antialiasing. Grey is luma. With `stretch` the darkest value of a patch becomes 0 and the
    brightest 255.

    Raises:
        DataError: the task's images are larger than the photographs.
    """
    from sklearn.datasets import load_sample_images

    photographs = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    smallest, bound = form.size or 224, min(photographs[0].shape[1:])
    if smallest > bound:
        raise DataError(
            f"unlabelled.photographs has sides of {bound} pixels at most, the task wants "
            f"{smallest}; use unlabelled=folder"
        )
    boxes = _boxes(options, smallest, min(bound, smallest * options.largest), photographs[0].shape)

    def read(index: int) -> Tensor:
        photograph, top, left, side = boxes[index]
        return photographs[photograph][:, top : top + side, left : left + side]

    def stretched(image: Any) -> Tensor:
        pixels: Tensor = form(image).float()
        low, high = pixels.amin(), pixels.amax()
        return ((pixels - low) * 255 / (high - low).clamp(min=1)).round().to(torch.uint8)

    return Unlabelled(options.patches, read, stretched if options.stretch else form)


def _boxes(
    options: Photographs, smallest: float, largest: float, shape: torch.Size
) -> list[tuple[int, int, int, int]]:
    """(photograph, top, left, side) of each patch."""
    generator = torch.Generator().manual_seed(options.seed)
    draws = torch.rand(options.patches, 4, generator=generator, dtype=torch.float64)
    boxes = []
    for which, size, row, column in draws.tolist():
        side = round(smallest * (largest / smallest) ** size)
        top, left = int(row * (shape[1] - side + 1)), int(column * (shape[2] - side + 1))
        boxes.append((int(2 * which), top, left, side))
    return boxes


def torchvision_images(options: TorchvisionImages, form: Form) -> Unlabelled:
    """The images of a data set of torchvision; its targets are not looked at.

    Raises:
        SpecError: no such data set, or its options are wrong.
        DataError: it is missing or damaged.
    """
    from torchvision import datasets

    name = options.name or ""
    known = [n for n in datasets.__all__ if isinstance(getattr(datasets, n), type)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        cure = f"did you mean {', '.join(close)}?" if close else f"e.g. {', '.join(known[:6])}"
        raise SpecError(
            f"unlabelled.torchvision.name must be a data set of torchvision, got {name!r}; {cure}"
        )
    root = Path(options.root or DEFAULT_ROOT).expanduser().absolute()
    make: Callable[..., Any] = getattr(datasets, name)
    own: dict[str, Any] = {"root": str(root)} if "root" in signature(make).parameters else {}
    own |= {"download": True} if options.download else {}
    given, group = dict(options.options), "unlabelled.torchvision"
    with reading(f"{group}.name={name}", root, download=options.download, group=group):
        try:
            dataset = make(**own, **given)
        except TypeError as error:
            reason = str(error).partition("() ")[2] or str(error)
            raise SpecError(
                f"unlabelled.torchvision.options={given} do not fit {name}: {reason}"
            ) from error
    return Unlabelled(len(dataset), lambda index: dataset[index][0], form)
