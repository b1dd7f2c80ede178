"""Starting weights of a run: its network put on its grids from training images."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from qat.data.dataset import images_of
from qat.data.module import ImageData, first_batches
from qat.quantize.initial import LayerFit, Told, start_weights
from qat.ranks import group as ranks
from qat.spec.initial import InitSpec
from qat.storage.atomic import replacing
from qat.storage.reading import read_regular
from qat.train.build import Built

FILE = "init.json"
_HELD = 1 << 26  # numbers of images that are kept in memory; more are read again for each pass
_CELLS = 20  # of the bar


def begin_from_images(built: Built, spec: InitSpec, folder: Path) -> None:
    """Give a run's network its starting weights, and keep what became of them in its folder.

    Of several processes each does so by itself, from the same images and to the same end.

    Args:
        built: with float weights; its steps are measured now, and not once more at the switch.
        spec: how weights start.
        folder: of the run, which gets init.json.

    Raises:
        SpecError: as `start_weights`.
    """
    begin = time.monotonic()
    images = _images(built.data, spec.images)
    fits = start_weights(built.net, built.plan, spec, images, told=_bar(spec.method))
    built.lit.phases.measures_steps = False
    seconds = time.monotonic() - begin
    if not ranks.is_first():
        return
    content = {"method": spec.method, "seconds": seconds, "layers": [asdict(fit) for fit in fits]}
    with replacing(folder / FILE) as file:
        file.write(json.dumps(content, indent=1).encode())
    print(f"init: {spec.method} in {seconds:.1f} s{_told_of(fits)}", flush=True)


def _told_of(fits: Sequence[LayerFit]) -> str:
    if not fits:
        return ""
    by_rounding, now = (
        sum(getattr(fit, name) for fit in fits) / len(fits) for name in ("rounding", "error")
    )
    return (
        f"; squared error of a layer's outputs, on average {now:.2e} of their square "
        f"(by rounding {by_rounding:.2e})"
    )


def record_of_init(folder: Path) -> dict[str, Any]:
    """What `begin_from_images` has kept in a run folder, under the key init; empty without it."""
    path = folder / FILE
    return {"init": json.loads(read_regular(path))} if path.is_file() else {}


def _images(data: ImageData, count: int) -> Callable[[], Iterable[Tensor]]:
    batches = -(-count // data.options.batch_size)

    def drawn() -> Iterable[Tensor]:
        return (images_of(batch) for batch in first_batches(data, batches))

    numbers = count * data.channels * data.image_size**2
    if numbers > _HELD:
        return drawn
    held = list(drawn())
    return lambda: held


def _bar(method: str) -> Told:
    """Tells of each layer: a bar on a terminal, a line in a log."""

    def told(name: str, place: int, count: int) -> None:
        if not ranks.is_first():
            return
        if not sys.stderr.isatty():
            print(f"init: {method}, layer {place + 1} of {count}: {name}", flush=True)
            return
        full = _CELLS * (place + 1) // count
        bar = "#" * full + "." * (_CELLS - full)
        end = "\n" if place + 1 == count else ""
        words = f"\r\033[Kinit: {method} [{bar}] {place + 1}/{count} {name}"
        print(words, end=end, file=sys.stderr, flush=True)

    return told
