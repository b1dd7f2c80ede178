"""File header: options, architecture, preprocessing, accuracy and origin of an exported network."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qat.errors import CheckpointError, SpecError
from qat.spec.quant import QuantSpec
from qat.spec.schema import check, option, read

FORMAT = 1
_MOST_AXES = 8
_LARGEST_IMAGE = 2**28  # values; what a file asks for is made
_LONGEST_REASON = 300  # letters; what is wrong may be megabytes long
Family = Literal["small", "torchvision", "timm"]
Crop = Literal["whole", "centre"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to build the network, by name; never code.

    Attributes:
        family: small (`qat.models.small`), torchvision or timm.
        options: of the family's factory in `qat.models.resnet`.
    """

    family: Family
    options: Mapping[str, Any]


def shorter_side(size: int) -> int:
    """Pixels of the shorter side before the middle `size` are cut out: 256 for 224, in proportion.

    >>> shorter_side(224), shorter_side(64)
    (256, 73)
    """
    return round(size * 256 / 224)


def color_of(channels: int) -> Literal["RGB", "L", "none"]:
    """What so many channels of an image file are in Pillow's words; none if no file has so many."""
    return {1: "L", 3: "RGB"}.get(channels, "none")  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What becomes of an image in front of the network, and how its answers are called.

    Attributes:
        channels: 1 (grey) or 3 (colour), or any number for images that are no files.
        size: height and width in pixels.
        crop: whole stretches the image to the size; centre scales it until its shorter side has
            `resize_shorter` pixels and cuts out the middle.
        resize_shorter: pixels; 0 if nothing is cut. Files without it mean `shorter_side`.
        interpolation: of that scaling.
        antialias: whether pixels that are made fewer are averaged first, as Pillow always does.
        color: order of the channels, RGB or L (grey) in Pillow's words, or none for images that are
            no files. Files without it mean what the number of channels says.
        mean: of each channel, of pixels in 0..1; subtracted.
        std: of each channel; divided by, > 0.
        classes: their names, by label.
        upright: whether files are turned as their EXIF orientation says.
    """

    channels: int = option(low=1, high=1024)
    size: int = option(low=1, high=2048)
    crop: Crop = "whole"
    resize_shorter: int = option(0, low=0, high=4096)
    interpolation: Literal["bilinear"] = "bilinear"
    antialias: bool = True
    color: Literal["RGB", "L", "none", ""] = ""
    mean: tuple[float, ...] = option()
    std: tuple[float, ...] = option(above=0)
    classes: tuple[str, ...] = option()
    upright: bool = option(False, is_added=True)

    def __post_init__(self) -> None:
        check(self, "preprocessing")
        set_field = object.__setattr__  # what older files leave out
        if not self.color:
            set_field(self, "color", color_of(self.channels))
        if self.crop == "centre" and not self.resize_shorter:
            set_field(self, "resize_shorter", shorter_side(self.size))
        self._check_told()
        odd = next((name for name in self.classes if not name.isprintable()), None)
        if odd is not None:
            raise SpecError(f"preprocessing.classes: {odd!r:.50} cannot be printed; rename it")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise SpecError(
                    f"preprocessing.{name} must have one number per channel ({self.channels}); "
                    f"got {len(getattr(self, name))}"
                )

    def _check_told(self) -> None:
        if self.color != color_of(self.channels):
            raise SpecError(
                f"preprocessing.color must be {color_of(self.channels)} for {self.channels} "
                f"channels; got {self.color}"
            )
        if not self.antialias:
            raise SpecError("preprocessing.antialias must be true, as Pillow always averages")
        fits = (
            self.resize_shorter >= self.size if self.crop == "centre" else not self.resize_shorter
        )
        if not fits:
            raise SpecError(
                f"preprocessing.resize_shorter must be at least size={self.size} with crop=centre "
                f"and 0 with crop=whole; got {self.resize_shorter} with crop={self.crop}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, self.size, self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of a packed file.

    Attributes:
        quant: the options that the network was trained with.
        architecture: how to build it; None for a network of the user's own.
        preprocessing: of its images; None if nobody said.
        data: config group `data` that it was trained on, "" if unknown.
        split: rule by which its parts were carved, as data.split; with val_share and test_share.
        accuracy: name of a part (validation, test) -> accuracy at export, 0..1.
        versions: package -> version at export.
        source_sha256: of the checkpoint that the weights come from, "" if there is none.
        trits: whether ternary weights are packed five to a byte.
        promised_bytes: the audit's size of the network.
        example: shape of one image, (C, H, W), for a network without preprocessing; None if nobody
            said, and then not in the file.
        preparation: earliest version of the preparation that makes the same of the network.
    """

    quant: QuantSpec
    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    data: str = ""
    split: Literal["index", "path"] = option("index", is_added=True)
    val_share: float | None = option(None, above=0, below=1, is_added=True)
    test_share: float | None = option(None, above=0, below=1, is_added=True)
    accuracy: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source_sha256: str = ""
    trits: bool = False
    promised_bytes: int = option(0, low=0)
    example: tuple[int, ...] | None = option(None, low=1, is_added=True)
    preparation: int = option(1, low=1, is_added=True)

    def __post_init__(self) -> None:
        check(self, "header")
        shape = self.example or ()
        if len(shape) > _MOST_AXES or math.prod(shape) > _LARGEST_IMAGE:
            raise SpecError(
                f"header.example must have at most {_MOST_AXES} axes and {_LARGEST_IMAGE:,} "
                f"values; got {shape!r:.50}"
            )
        for part, value in self.accuracy.items():
            is_share = isinstance(value, (int, float)) and 0 <= value <= 1
            if not is_share or part not in ("validation", "test"):
                raise SpecError(
                    f"header.accuracy must be 0..1 of validation and test; got {value!r:.50}"
                )

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one image, None if the file does not tell it."""
        return self.example if self.preprocessing is None else self.preprocessing.shape

    def to_json(self) -> str:
        """One line of JSON, the same for equal headers.

        What came later stands in it only where it is not at its default, so that equal networks
        have equal files whatever version wrote them.
        """
        return json.dumps(_plain(self), separators=(",", ":"))


def _plain(value: Any) -> Any:
    """Plain values, without the options that came later where they are at their defaults."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    return {
        field.name: _plain(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if not field.metadata.get("is_added") or getattr(value, field.name) != field.default
    }


def header_from(values: object) -> Header:
    """Read a header from plain values.

    Raises:
        CheckpointError: something is missing, unknown, or of another type.
    """
    try:
        return read(Header, values, "header")
    except (SpecError, RecursionError) as error:
        # keys may hold line breaks, values may be nested a thousand deep
        why = "".join(c if c.isprintable() else " " for c in str(error))[:_LONGEST_REASON]
        raise CheckpointError(f"the header is not what this qat writes: {why}") from None
