"""Prediction: classes of images, by a packed file, an ONNX file or a run folder.

python scripts/predict.py IMAGE... model=FILE

IMAGE     image files, or folders of them
model=    what scripts/export.py wrote, or a run folder
top=3     classes to print of each image, with their probabilities
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat.commands.options import check_path, read_arguments, run_command
from qat.errors import DataError, SpecError, shown
from qat.spec.schema import check, option
from qat.spec.unlabelled import ENDINGS, images_below

_AT_ONCE = 64
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSpec:
    """Options of the command; see the module's text."""

    model: str = option(hint="give a file of scripts/export.py or a run folder")
    top: int = option(3, low=1)

    def __post_init__(self) -> None:
        check(self, "")


def main(arguments: Sequence[str]) -> None:
    """Print the classes of the images that the arguments name."""
    options = [a for a in arguments if a.partition("=")[0] in ("model", "top") and "=" in a]
    spec = read_arguments(PredictSpec, options, example="model=FILE")
    places = [Path(a) for a in arguments if a not in options]
    if not places:
        raise SpecError("no image was named; give files or folders, e.g. predict.py a.png model=F")
    check_path(Path(spec.model))
    paths = list(_images(places))
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} does not exist; give image files or folders of them")
    from qat.commands.network import open_network

    network = open_network(Path(spec.model))
    width = max(len(shown(path)) for path in paths)
    for begin in range(0, len(paths), _AT_ONCE):
        some = paths[begin : begin + _AT_ONCE]
        probabilities = network.logits(_batch(some, network.preprocessing)).softmax(dim=1)
        count = min(spec.top, probabilities.shape[1])
        for path, row in zip(some, probabilities, strict=True):
            shares, labels = row.topk(count)
            named = (
                f"{network.preprocessing.classes[int(label)]} {float(share):.3f}"
                for label, share in zip(labels, shares, strict=True)
            )
            print(f"{shown(path):{width}}  {'  '.join(named)}")


def _images(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, folders as the image files inside, sorted."""
    for path in paths:
        if path.is_dir():
            found = sorted(images_below(path))  # what training would take
            if not found:
                raise DataError(
                    f"the folder {path} holds no image file ({' '.join(ENDINGS)}); give another"
                )
            yield from map(Path, found)
        else:
            yield path


def _batch(paths: Sequence[Path], preprocessing: Any) -> Any:
    """Images (N, C, H, W) as the network wants them."""
    import torch

    from qat.data.image_files import read_image
    from qat.data.transforms import from_file

    mode = _MODES.get(preprocessing.channels)
    if mode is None:
        raise SpecError(f"the network wants {preprocessing.channels} channels; files have 1 or 3")
    transform = from_file(preprocessing)
    images = (read_image(str(path), is_upright=preprocessing.upright) for path in paths)
    return torch.stack([transform(image.convert(mode)) for image in images])


def command() -> None:
    """Entry point of scripts/predict.py and of the console script qat-predict."""
    run_command(main, __doc__ or "")
