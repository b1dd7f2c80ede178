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


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What becomes of an image in front of the network, and how its answers are called.

    Attributes:
        channels: 1 (grey) or 3 (colour), or any number for images that are no files.
        size: height and width in pixels.
        crop: whole stretches the image to the size; centre scales the shorter side to 256/224 of
            it and cuts out the middle.
        mean: of each channel, of pixels in 0..1; subtracted.
        std: of each channel; divided by, > 0.
        classes: their names, by label.
        upright: whether files are turned as their EXIF orientation says.
    """

    channels: int = option(low=1, high=1024)
    size: int = option(low=1, high=2048)
    crop: Crop = "whole"
    mean: tuple[float, ...] = option()
    std: tuple[float, ...] = option(above=0)
    classes: tuple[str, ...] = option()
    upright: bool = option(False, is_added=True)

    def __post_init__(self) -> None:
        check(self, "preprocessing")
        odd = next((name for name in self.classes if not name.isprintable()), None)
        if odd is not None:
            raise SpecError(f"preprocessing.classes: {odd!r:.50} cannot be printed; rename it")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise SpecError(
                    f"preprocessing.{name} must have one number per channel ({self.channels}); "
                    f"got {len(getattr(self, name))}"
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
        split: rule by which its parts were carved, as data.split.
        accuracy: name of a part (validation, test) -> accuracy at export, 0..1.
        versions: package -> version at export.
        source_sha256: of the checkpoint that the weights come from, "" if there is none.
        trits: whether ternary weights are packed five to a byte.
        promised_bytes: the audit's size of the network.
        example: shape of one image, (C, H, W), for a network without preprocessing; None if nobody
            said, and then not in the file.
    """

    quant: QuantSpec
    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    data: str = ""
    split: Literal["index", "path"] = option("index", is_added=True)
    accuracy: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source_sha256: str = ""
    trits: bool = False
    promised_bytes: int = option(0, low=0)
    example: tuple[int, ...] | None = option(None, low=1, is_added=True)

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
