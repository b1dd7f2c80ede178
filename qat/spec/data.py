"""Data options: the config groups `data` and `data.glyphs`; standard library only."""

from dataclasses import dataclass
from typing import Literal

from qat.errors import SpecError
from qat.spec.schema import check, option

DataName = Literal[
    "digits", "glyphs", "mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet",
    "imagenet", "image_folder",
]  # fmt: skip


CLASSES = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


_LOW, _HIGH = len(CLASSES), 1_000_000  # a picture of each class; 3 GB of pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class GlyphsSpec:
    """The config group `data.glyphs`, of data=glyphs only.

    Attributes:
        train: pictures for training, 26..1,000,000, as many of each class (up to one).
        validation: pictures for validation, in the same range.
        test: pictures for test, in the same range.
        difficulty: 0 (upright, sharp, full contrast) .. 1 (hard to read for a person, too); the
            end of every range of `glyph_drawing.Ranges` is linear in it.
        seed: of the pictures; the run's seed moves the order and the augmentation only.
    """

    train: int = option(2496, low=_LOW, high=_HIGH)
    validation: int = option(520, low=_LOW, high=_HIGH)
    test: int = option(1040, low=_LOW, high=_HIGH)
    difficulty: float = option(0.25, low=0, high=1)
    seed: int = option(0, low=0)

    def __post_init__(self) -> None:
        check(self, "data.glyphs")

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures of each part, in the order in which they are kept."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The config group `data`.

    Attributes:
        name: data set family.
        root: folder of the data; null means ./datasets.
        download: whether a missing set may be fetched from the network.
        batch_size: images per training batch, >= 2.
        workers: loader processes, 0 loads in the main process.
        augment: whether training images are augmented.
        image_size: side in pixels, null for the family's own.
        class_weights: none, or balanced (loss weights inverse to the class frequencies).
        glyphs: see GlyphsSpec; of data=glyphs only, None takes its defaults.
    """

    name: DataName = "digits"
    root: str | None = None
    download: bool = option(False, moves="nothing")
    batch_size: int = option(64, low=2)
    workers: int = option(0, low=0, moves="nothing")
    augment: bool = True
    image_size: int | None = option(None, low=4)
    class_weights: Literal["none", "balanced"] = "none"
    glyphs: GlyphsSpec | None = None

    def __post_init__(self) -> None:
        check(self, "data")
        if self.glyphs is not None and self.name != "glyphs":
            raise SpecError(f"data.glyphs is for data=glyphs; got data.name={self.name}")
