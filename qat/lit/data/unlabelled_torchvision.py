"""Images without labels out of any data set of torchvision."""

import difflib
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from qat.errors import SpecError
from qat.lit.data.form import Form, Unlabelled
from qat.lit.data.guard import reading
from qat.lit.data.layout import DEFAULT_ROOT
from qat.unlabelled_spec import TorchvisionImages


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
