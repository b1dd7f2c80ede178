"""Options of the synthetic letters, `data.glyphs`; standard library only."""

from dataclasses import dataclass

from qat.schema import check, option

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
