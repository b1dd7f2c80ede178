"""Unlabelled images out of any data set of torchvision."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from qat.data.image_files import read_image
from qat.data.reading import reading
from qat.data.unlabelled.form import Form
from qat.errors import DataError, SpecError
from qat.spec.data_files import DEFAULT_ROOT
from qat.spec.unlabelled import TorchvisionImages, check_torchvision

_GROUP = "unlabelled.torchvision"


@dataclass(frozen=True, slots=True)
class FirstOfEach:
    """The images that the items of a data set begin with, in the form of the task."""

    dataset: Any
    form: Form

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.form(self.dataset[index][0])


def torchvision_images(options: TorchvisionImages, form: Form) -> FirstOfEach:
    """The images of a data set of torchvision; its targets are not looked at.

    Raises:
        SpecError: no such data set, its options are wrong, or it holds no images.
        DataError: it is missing or damaged.
    """
    from torchvision import datasets

    name = check_torchvision(options)
    root = Path(options.root or DEFAULT_ROOT).expanduser().absolute()
    make: Callable[..., Any] = getattr(datasets, name)
    accepted = signature(make).parameters
    # some sets download unless they are told not to
    choices = {"root": str(root), "download": options.download}
    own = {key: value for key, value in choices.items() if key in accepted}
    if options.download and "download" not in accepted:
        raise SpecError(
            f"{_GROUP}.download=true: torchvision cannot fetch {name}; put its files into "
            f"{_GROUP}.root={root} and use false"
        )
    given = dict(options.options or {})
    with reading(f"{_GROUP}.name={name}", root, download=options.download, group=_GROUP):
        try:
            dataset = make(**{**given, **own})
        except TypeError as error:
            reason = str(error).partition("() ")[2] or str(error)
            raise SpecError(f"{_GROUP}.options={given} do not fit {name}: {reason}") from error
        if hasattr(dataset, "loader"):
            # its own would take files of any format, PostScript too
            dataset.loader = partial(read_image, is_upright=form.is_upright)
        if len(dataset) == 0:
            raise DataError(f"{_GROUP}.name={name} is empty; use another data set or other options")
        _check_item(name, dataset[0])
    return FirstOfEach(dataset, form)


def _check_item(name: str, item: Any) -> None:
    """Refuse a data set whose items do not begin with an image."""
    first = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(first, Image.Image):
        return
    is_image = isinstance(first, Tensor) and (
        first.ndim == 2 or (first.ndim == 3 and first.shape[0] in (1, 3))
    )
    if not (is_image and isinstance(item, (tuple, list))):
        what = f"{tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise SpecError(
            f"{_GROUP}.name={name}: its items begin with {what}, and not with a picture or a "
            "tensor (H, W) or (C, H, W); use another data set"
        )
    if first.is_floating_point() and not 0 <= float(first.min()) <= float(first.max()) <= 1:
        raise SpecError(
            f"{_GROUP}.name={name}: float pixels must lie in 0..1, found {float(first.min()):g} .. "
            f"{float(first.max()):g}; use another data set"
        )
