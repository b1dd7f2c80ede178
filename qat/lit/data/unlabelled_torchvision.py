"""Images without labels out of any data set of torchvision."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from qat.errors import SpecError
from qat.lit.data.form import Form
from qat.lit.data.guard import reading
from qat.lit.data.layout import DEFAULT_ROOT
from qat.unlabelled_spec import TorchvisionImages, check_torchvision

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
    own: dict[str, Any] = {"root": str(root)} if "root" in signature(make).parameters else {}
    own |= {"download": True} if options.download else {}
    given = dict(options.options)
    with reading(f"{_GROUP}.name={name}", root, download=options.download, group=_GROUP):
        try:
            dataset = make(**{**given, **own})
        except TypeError as error:
            reason = str(error).partition("() ")[2] or str(error)
            raise SpecError(f"{_GROUP}.options={given} do not fit {name}: {reason}") from error
        first = dataset[0][0]
    if not (isinstance(first, Image.Image) or (isinstance(first, Tensor) and first.ndim in (2, 3))):
        raise SpecError(
            f"{_GROUP}.name={name} holds no single images but {type(first).__name__}; "
            "use another data set"
        )
    return FirstOfEach(dataset, form)
