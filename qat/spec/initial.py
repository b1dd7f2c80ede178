"""Options of starting weights: the config group `init`; standard library only."""

from dataclasses import dataclass
from typing import Literal

from qat.errors import SpecError
from qat.spec.quant import WeightSpec
from qat.spec.schema import check, option

InitMethod = Literal["rounding", "comq", "magr_comq"]
CodeOrder = Literal["cyclic", "greedy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSpec:
    """The config group `init`: weights put on their grids from images, before any training step.

    Steps of activations are measured on the same images, BatchNorm statistics taken anew with the
    quantized network, and biases corrected. No label is read.

    Attributes:
        method: rounding (to the nearest grid point, as the update rules do), comq (codes that keep
            each layer's outputs, arXiv:2403.07134), or magr_comq (after the weights' largest
            magnitudes were brought down, arXiv:2406.00800).
        images: training images that are looked at, rounded up to whole batches.
        sweeps: of comq over all codes of a layer.
        order: of the codes in a sweep: cyclic as they stand, or greedy, the largest share of the
            output first.
        moves_scale: whether comq fits the scale anew after each sweep.
        magr_alpha: weight of the largest magnitude in magr_comq, as a share of the largest
            eigenvalue of the layer's Gram matrix.
        batchnorm: whether BatchNorm statistics are taken anew.
        biases: whether biases take up what quantization moved the outputs by on average.
    """

    method: InitMethod = option("comq", is_added=True)
    images: int = option(1024, low=1, is_added=True)
    sweeps: int = option(3, low=1, is_added=True)
    order: CodeOrder = option("cyclic", is_added=True)
    moves_scale: bool = option(True, is_added=True)
    magr_alpha: float = option(1e-3, low=0, is_added=True)
    batchnorm: bool = option(True, is_added=True)
    biases: bool = option(True, is_added=True)

    def __post_init__(self) -> None:
        check(self, "init")


def check_start(init: InitSpec, weight: WeightSpec) -> None:
    """Refuse weights that have no grid to start on.

    Args:
        init: how weights are to start.
        weight: options of some of them.

    Raises:
        SpecError: they are quantized in the graph, or their grid's projection moves its own points.
    """
    if weight.is_in_graph:
        raise SpecError(
            f"init={init.method} chooses codes of grids that an update rule projects on, and "
            f"quant.weight.method={weight.method} has none; use init=null, or "
            "quant.weight.method=update"
        )
    if weight.grid == "power_of_two" and weight.bits > 2 and weight.mu <= 0.5:
        raise SpecError(
            f"init={init.method} with quant.weight.mu={weight.mu:g}: at 0.5 and below the "
            "projection moves points of its own grid; use a mu above 0.5"
        )
