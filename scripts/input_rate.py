"""Rate of the input: images a second out of files, beside those that a network takes.

    python scripts/input_rate.py                         0, 1, 2 workers, and a step of ResNet-18
    python scripts/input_rate.py workers=[0,4,8,16] images=2000 takes=3000
    python scripts/input_rate.py images=64 rounds=1 steps=0

    images=384           files, each a JPEG of 500 x 375 pixels and about 110 kB, as ImageNet's are
    workers=[0,1,2]      loader processes; 0 loads in the main one, on one thread
    batch=32             images
    rounds=3             epochs of each row after one to warm up; the fastest counts
    steps=5              steps of ResNet-18, W1A4, at 224 pixels on one core; 0 leaves them out
    takes=3000           images a second of a device; the cores that feed it are computed
    record=FILE          also write the tables as YAML, as those in results/benchmarks/

The files are made in a temporary folder: noise whose amplitude falls as 1 / f, as that of
photographs does, the colours correlated. They are read from memory (the page cache), so that no
disk is measured. The loader is that of data=image_folder: decoding, a random part of the image at
224 x 224, a flip, normalisation. Milliseconds of a core are of the processor's time, which other
work on the machine hardly changes; images a second are of the clock.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measured import record

from qat.commands.options import read_arguments, run_command
from qat.spec.schema import check, option

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from qat.data.module import ImageData

_PIXELS = (375, 500)  # H, W
_QUALITY = 88
_CLASSES = ("a", "b")
# row -> options of the group data
_AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "crop, flip": {},
    "with erase=0.25": {"erase": 0.25},
    "with rand_augment=2": {"rand_augment": 2},
    "with mixup=0.2": {"mixup": 0.2},
    "with all three": {"erase": 0.25, "rand_augment": 2, "mixup": 0.2},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRateSpec:
    """Options of the command; see the module's text."""

    images: int = option(384, low=20)
    workers: tuple[int, ...] = option((0, 1, 2), low=0)
    batch: int = option(32, low=2)
    rounds: int = option(3, low=1)
    steps: int = option(5, low=0)
    takes: int = option(3000, low=1)
    record: str | None = None

    def __post_init__(self) -> None:
        check(self, "")


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    spec = read_arguments(InputRateSpec, arguments, example="workers=[0,2]")
    import PIL
    import torch

    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder), spec.images)
        print(f"{spec.images} files of {size / 1e3:.0f} kB", flush=True)
        tables = [_parts(folder, spec), _rates(folder, spec)]
    if spec.steps:
        tables.append(_network(spec))
    for table in tables:
        print("\n".join("  ".join(f"{cell:>24}" for cell in row) for row in table), end="\n\n")
    if spec.record is not None:
        where = f"{os.cpu_count()} cores, Pillow {PIL.__version__}"
        record(spec.record, " ".join(["python scripts/input_rate.py", *arguments]), tables, where)


def write_photographs(folder: Path, count: int) -> float:
    """Write JPEGs in folders of two classes; the mean of their bytes."""
    import numpy as np

    rng = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        path = folder / _CLASSES[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        photograph(rng, _PIXELS).save(path, quality=_QUALITY)
        sizes.append(path.stat().st_size)
    return sum(sizes) / count


def photograph(rng: "np.random.Generator", size: tuple[int, int]) -> "Image.Image":
    """Noise with the spectrum of photographs: amplitude 1 / f, colours around a common grey."""
    import numpy as np
    from PIL import Image

    height, width = size
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(down, across), 1 / max(size))
    waves = rng.standard_normal((2, 3, *frequency.shape))
    pixels = np.fft.irfft2((waves[0] + 1j * waves[1]) / frequency, s=size)
    pixels[1:] = pixels[:1] + 0.4 * pixels[1:]
    pixels = 127 + 50 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _data(folder: str, spec: InputRateSpec, workers: int, **options: Any) -> "ImageData":
    from qat.data.registry import build_data
    from qat.spec.data import DataSpec

    own = {"batch_size": spec.batch, "workers": workers, "scan": "none", "split": "path"}
    own |= {"val_share": 0.1, "test_share": 0.1}  # what is loaded is the training part
    data = build_data(DataSpec(name="image_folder", root=folder, **own, **options), seed=1)
    data.prepare()
    return data


def _fastest(work: Callable[[], int], rounds: int, clock: Callable[[], float]) -> float:
    """Seconds for each of the images that `work` goes through, after one round to warm up."""
    times = []
    for _ in range(rounds + 1):
        begin = clock()
        count = work()
        times.append((clock() - begin) / count)
    return min(times[1:])


def _parts(folder: str, spec: InputRateSpec) -> list[list[str]]:
    """Milliseconds of an image on one core, by what is done to it."""
    data = _data(folder, spec, 0)
    raw, few = data.parts.train, range(min(64, len(data.parts.train)))
    decoded = [raw[index][0] for index in few]
    found = {"read and decode": _each(lambda index: raw[index], few, spec)}
    for name in ("crop, flip", "with erase=0.25", "with rand_augment=2"):
        transform = _data(folder, spec, 0, **_AUGMENTATIONS[name]).training_set().transform
        found[f"{name}, normalise"] = _each(transform, decoded, spec)
    rows = [[name, f"{1e3 * seconds:.2f}"] for name, seconds in found.items()]
    return [["an image", "ms of a core"], *rows]


def _each(work: Callable[[Any], Any], items: Sequence[Any], spec: InputRateSpec) -> float:
    def run() -> int:
        for item in items:
            work(item)
        return len(items)

    return _fastest(run, spec.rounds, time.process_time)


def _rates(folder: str, spec: InputRateSpec) -> list[list[str]]:
    """The training loader, by augmentation and workers."""
    rows = []
    for name, options in _AUGMENTATIONS.items():
        core = _epochs(folder, spec, 0, options, time.process_time)
        clock = time.perf_counter
        rates = [1 / _epochs(folder, spec, n, options, clock) for n in spec.workers]
        shown = [f"{1e3 * core:.2f}", *(f"{rate:.0f}" for rate in rates)]
        rows.append([name, *shown, f"{spec.takes * core:.0f}"])
        print(*rows[-1], flush=True)
    heads = [f"images/s, {n} workers" for n in spec.workers]
    return [
        ["loader", "ms of a core an image", *heads, f"cores for {spec.takes:,}/s, computed"],
        *rows,
    ]


def _epochs(
    folder: str,
    spec: InputRateSpec,
    workers: int,
    options: dict[str, Any],
    clock: Callable[[], float],
) -> float:
    """Seconds of an image in the fastest epoch."""
    loader = _data(folder, spec, workers, **options).train_dataloader()
    return _fastest(lambda: sum(len(batch[0]) for batch in loader), spec.rounds, clock)


def _network(spec: InputRateSpec) -> list[list[str]]:
    """What a training step asks of a core of this machine."""
    from contenders import MODES, Contender

    from qat import QuantSpec
    from qat.compose import conf_folder, group_option

    quant = QuantSpec.from_dict(group_option(conf_folder(), "quant", "bcgd_w1a4"))
    rows = []
    for name, title in (("float", "ResNet-18, float"), ("integers", "ResNet-18, W1A4")):
        mode = MODES[name]
        own = None if mode.is_float else quant
        made = Contender("resnet18_224", own, mode, "nchw", batch=spec.batch)

        def step(made: Contender = made) -> int:
            made.step()
            return spec.batch

        seconds = _fastest(step, spec.steps, time.process_time)
        rows.append([title, f"{1e3 * seconds:.0f}", f"{1 / seconds:.1f}"])
        print(*rows[-1], flush=True)
    return [["a training step", "ms of a core an image", "images/s of a core"], *rows]


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
