"""Prediction: classes of images, by a packed file, an ONNX file or a run folder.

python scripts/predict.py IMAGE... model=FILE

IMAGE     image files, or folders of them, nested or not
model=    what scripts/export.py wrote, or a run folder
top=3     classes to tell of each image, with their probabilities
out=      a CSV file for them instead of lines: file, rank, class, probability, error
sheet=    a PNG file: the images of which the network is least certain, with their classes
least=24  images on it, those of the lowest probability of the class that is named
integer_forward=auto      int8 sums in layers of codes, as in scripts/evaluate.py: on, off or auto

A file that is no image is told and left out; the exit code is then 2.
"""

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qat.commands.options import check_path, read_arguments, run_command
from qat.errors import DataError, SpecError, one_line, shown
from qat.names import IntegerForward
from qat.spec.header import Preprocessing
from qat.spec.schema import check, option
from qat.spec.unlabelled import ENDINGS, images_below
from qat.storage.atomic import whole_file

if TYPE_CHECKING:
    from torch import Tensor

    from qat.commands.network import Network

_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSpec:
    """Options of the command; see the module's text."""

    model: str = option(hint="give a file of scripts/export.py or a run folder")
    top: int = option(3, low=1)
    out: str | None = None
    sheet: str | None = None
    least: int = option(24, low=1, high=600)
    integer_forward: IntegerForward = "auto"

    def __post_init__(self) -> None:
        check(self, "")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network says of an image file.

    Attributes:
        path: of the file.
        named: (class, probability), the most probable first; empty of a file that is no image.
        error: why there is none, otherwise empty.
    """

    path: Path
    named: tuple[tuple[str, float], ...] = ()
    error: str = ""


def main(arguments: Sequence[str]) -> None:
    """Print or write the classes of the images that the arguments name."""
    known = PredictSpec.__dataclass_fields__
    options = [a for a in arguments if "=" in a and a.partition("=")[0] in known]
    spec = read_arguments(PredictSpec, options, example="model=FILE")
    places = [Path(a) for a in arguments if a not in options]
    if not places:
        raise SpecError("no image was named; give files or folders, e.g. predict.py a.png model=F")
    check_path(Path(spec.model))
    paths = list(_images(places))
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} does not exist; give image files or folders of them")
    _check_written(spec, [*paths, Path(spec.model)])
    from qat.commands.network import open_network
    from qat.commands.sheet import LeastCertain, write_sheet

    network = open_network(Path(spec.model), integer_forward=spec.integer_forward)
    width = max(len(shown(path)) for path in paths)
    least = LeastCertain(spec.least)
    with _lines(width) if spec.out is None else _table(Path(spec.out)) as put:
        for prediction in _predictions(network, paths, spec.top):
            if prediction.error:
                print(f"error: {one_line(prediction.error)}", file=sys.stderr)
            put(prediction)
            least.add(prediction)
    if spec.out is not None:
        print(f"{shown(spec.out)}: {least.seen} images")
    if spec.sheet is not None and least.seen:
        is_upright = network.preprocessing.upright
        write_sheet(Path(spec.sheet), least, model=spec.model, is_upright=is_upright)
        print(f"{shown(spec.sheet)}: the {len(least.found)} least certain of {least.seen} images")
    if least.seen < len(paths):
        unread = len(paths) - least.seen
        raise DataError(f"{unread} of {len(paths)} files could not be read, as said above")


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


def _check_written(spec: PredictSpec, read: Sequence[Path]) -> None:
    """Raise SpecError unless what is to be written can be, and is nothing that is read."""
    if spec.out is not None:
        _check_out("out", spec.out, ".csv", read)
    if spec.sheet is not None:
        if not spec.sheet.lower().endswith(".png"):
            raise SpecError(f"sheet={spec.sheet} must end in .png, e.g. sheet=answers.png")
        _check_out("sheet", spec.sheet, ".png", [*read, *([Path(spec.out)] if spec.out else [])])


def _check_out(key: str, file: str, ending: str, read: Sequence[Path]) -> None:
    path = Path(file)
    is_free = not os.path.lexists(path) and path.parent.is_dir()
    # a link, a pipe or a device would be replaced, not written to
    if not is_free and (path.is_symlink() or not path.is_file()):
        raise SpecError(
            f"{key}={path} must be a file, new or to be replaced, in a folder that is there, e.g. "
            f"{key}=answers{ending}"
        )
    if any(path.resolve() == other.resolve() for other in read):
        raise SpecError(
            f"{key}={path} is what the command reads or writes already; choose another name"
        )


def _predictions(network: "Network", paths: Sequence[Path], top: int) -> Iterator[Prediction]:
    """Of each file in turn; one that is no image does not stop the others."""
    import torch

    read = image_reader(network.preprocessing)
    for begin in range(0, len(paths), _AT_ONCE):
        at_once = paths[begin : begin + _AT_ONCE]
        some = [(path, read(path)) for path in at_once]
        images = [pixels for _, pixels in some if not isinstance(pixels, str)]
        answers = iter(_most_probable(network, torch.stack(images), top) if images else [])
        for path, pixels in some:
            if isinstance(pixels, str):
                yield Prediction(path, error=pixels)
            else:
                yield Prediction(path, next(answers))


def image_reader(preprocessing: Preprocessing) -> Callable[[Path], "Tensor | str"]:
    """What reads an image (C, H, W) as a network wants it, or says why there is none."""
    from qat.data.image_files import UnreadableImageError, read_image
    from qat.data.transforms import from_file

    if preprocessing.color == "none":
        raise SpecError(f"the network wants {preprocessing.channels} channels; files have 1 or 3")
    transform = from_file(preprocessing)

    def read(path: Path) -> "Tensor | str":
        try:
            image = read_image(str(path), is_upright=preprocessing.upright)
            pixels: Tensor = transform(image.convert(preprocessing.color))
        except UnreadableImageError as error:
            return str(error)
        except DataError as error:
            return f"{path}: {error}"
        return pixels

    return read


def _most_probable(
    network: "Network", images: "Tensor", top: int
) -> list[tuple[tuple[str, float], ...]]:
    probabilities = network.logits(images).softmax(dim=1)
    shares, labels = probabilities.topk(min(top, probabilities.shape[1]))
    classes = network.preprocessing.classes
    return [
        tuple((classes[label], share) for label, share in zip(*row, strict=True))
        for row in zip(labels.tolist(), shares.tolist(), strict=True)
    ]


@contextmanager
def _lines(width: int) -> Iterator[Callable[[Prediction], None]]:
    """A block in which predictions are printed, a line for each file."""

    def put(prediction: Prediction) -> None:
        named = "  ".join(f"{name} {share:.3f}" for name, share in prediction.named)
        if named:
            print(f"{shown(prediction.path):{width}}  {named}")

    yield put


@contextmanager
def _table(path: Path) -> Iterator[Callable[[Prediction], None]]:
    """A block in which predictions are written, a row for each file and class."""
    try:
        with whole_file(path) as file:
            # names as the file system has them: what is no UTF-8 leaves as it came
            text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
            table = csv.writer(text)
            table.writerow(["file", "rank", "class", "probability", "error"])

            def put(prediction: Prediction) -> None:
                if prediction.error:
                    table.writerow([prediction.path, "", "", "", one_line(prediction.error)])
                for rank, (name, share) in enumerate(prediction.named, 1):
                    table.writerow([prediction.path, rank, name, f"{share:.9g}", ""])

            yield put
            text.detach()
    except OSError as error:
        raise DataError(
            f"cannot write out={path}: {error.strerror or error}; free space or choose another"
        ) from None


def command() -> None:
    """Entry point of scripts/predict.py and of the console script qat-predict."""
    run_command(main, __doc__ or "")
