"""The pictures of the pages in docs/, from a sweep that has a report.

    python train.py -m model=resnet20 quant=float,bcgd_w1a4,binary_relax_w1a32 seed=1,2,3 sweep.name=first
    python scripts/report.py sweeps/first
    python scripts/pictures.py sweep=sweeps/first

Writes estimators.png, network.png and augmentation.png, which need no run, and copies cost.png, weights.png and diagnostics.png to
docs/pictures/. report.png is the head of the report in a browser:

    chromium --headless --hide-scrollbars --screenshot=docs/pictures/report.png --window-size=1200,1200 sweeps/first/report/index.html
"""  # noqa: E501

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.commands.options import read_arguments, run_command
from qat.errors import DataError
from qat.spec.schema import check, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

OUT = Path(__file__).resolve().parents[1] / "docs" / "pictures"
# name -> where it lies below the sweep's folder
FROM = {
    "cost": "report/pictures/*-bytes.png",
    "weights": "report/pictures/*-bcgd_w1a4-histograms.png",
    "diagnostics": "quant_bcgd_w1a4+seed_1-*/figures/diagnostics.png",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturesSpec:
    """Options of the command; see the module's text."""

    sweep: str = option(hint="give a sweep's folder, sweeps/first")

    def __post_init__(self) -> None:
        check(self, "")


def main(arguments: Sequence[str]) -> None:
    """Write and copy the pictures."""
    from qat.functional.stairs import relu_stairs
    from qat.report.figures.estimators import draw_estimators

    folder = Path(read_arguments(PicturesSpec, arguments, example="sweep=sweeps/first").sweep)
    OUT.mkdir(parents=True, exist_ok=True)
    draw_estimators(relu_stairs(2)).savefig(OUT / "estimators.png", dpi=80)
    _network().savefig(OUT / "network.png", dpi=80)
    _augmentation().savefig(OUT / "augmentation.png", dpi=80)
    for name, pattern in FROM.items():
        found = sorted(folder.glob(pattern))
        if not found:
            raise DataError(f"{folder} has no {pattern}; train it and write its report first")
        shutil.copyfile(found[0], OUT / f"{name}.png")
    print(OUT)


def _network() -> "Figure":
    """ResNet-18 with other bits in its second stage, as an override gives them."""
    import torch

    from qat import EndsSpec, Override, QuantSpec, audit, prepare
    from qat.models.resnet import torchvision_resnet
    from qat.quantize.plan import project_weights
    from qat.report.figures.network import draw_network

    other = Override(match="layer2.*", weight={"bits": 4}, activation={"bits": 8})
    spec = QuantSpec(ends=EndsSpec(last="float"), overrides=(other,))
    net = torchvision_resnet("resnet18", num_classes=10, in_channels=3, image_size=32)
    images = torch.zeros(2, 3, 32, 32)
    prepare(net, spec, example=images)
    project_weights(net, spec)
    return draw_network(audit(net, spec, images).to_dict()["layers"])


# row of the picture -> options of the group data
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "crop alone": {},
    "rand_augment=2": {"rand_augment": 2},
    "erase=1": {"erase": 1.0},
    "mixup=1": {"mixup": 1.0},
    "cutmix=1": {"cutmix": 1.0},
}


def _augmentation() -> "Figure":
    """The same eight letters under each augmentation, with what their labels say."""
    from qat.report.figures.sheet_of_samples import draw_samples

    return draw_samples({name: _letters(options) for name, options in AUGMENTATIONS.items()})


def _letters(options: dict[str, Any]) -> "list[tuple[Tensor, str]]":
    import torch

    from qat.data.registry import build_data
    from qat.spec.data import DataSpec, GlyphsSpec

    few = GlyphsSpec(train=520, validation=26, test=26)
    with tempfile.TemporaryDirectory() as root:
        data = build_data(DataSpec(name="glyphs", root=root, glyphs=few, **options), seed=1)
        data.prepare()
    dataset: Any = data.train_dataloader().dataset
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    found = []
    for index in range(8):
        image, label = dataset[0, index * 27]
        found.append((image * std + mean, _said(label, data.classes)))
    return found


def _said(label: "int | Tensor", classes: Sequence[str]) -> str:
    """A label as a caption, a share beside each class where there are several."""
    if isinstance(label, int):
        return classes[label]
    shares = [(float(share), name) for share, name in zip(label, classes, strict=True) if share]
    return "  ".join(f"{name} {share:.2f}" for share, name in sorted(shares, reverse=True))


if __name__ == "__main__":
    run_command(main, __doc__)
