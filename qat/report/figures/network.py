"""Network figure: every product in the order of execution, its operands' bits as colours."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qat.report.figures.curves import WIDTH
from qat.report.figures.style import COLORS, panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLOAT = COLORS[1]  # stands out among the blues
_FLOAT_BITS = 32
_NAMED = 10  # ticks at most
_LONGEST = 14  # letters of a tick


def draw_network(products: Sequence[Mapping[str, Any]]) -> "Figure":
    """A column per product: above, its share of the multiplications; below, both operands' bits.

    Few bits are dark blue, 8 bits light; float is orange, whatever it costs.

    Args:
        products: rows of an audit with `name`, `macs`, `weight_bits` and `input_bits`, in the order
            of execution.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgb
    from matplotlib.patches import Patch

    blues = LinearSegmentedColormap.from_list("bits", [COLORS[0], "#D6E6F2"])

    def color(bits: int) -> tuple[float, float, float]:
        shade = blues((min(bits, 8) - 1) / 7)[:3]
        return to_rgb(_FLOAT) if bits >= _FLOAT_BITS else shade

    total = sum(int(row["macs"]) for row in products) or 1
    places = range(len(products))
    with panels(2, 1, width=WIDTH, height=1.5) as (figure, axes):
        work, bits = axes[:, 0]
        both = [max(int(row["weight_bits"]), int(row["input_bits"])) for row in products]
        shares = [100 * int(row["macs"]) / total for row in products]
        work.bar(places, shares, width=0.9, color=[color(b) for b in both])
        work.set(ylabel="multipli-\ncations (%)", xlim=(-0.6, len(products) - 0.4), xticks=[])
        keys = ("input_bits", "weight_bits")  # from below
        cells = [[color(int(row[key])) for row in products] for key in keys]
        bits.imshow(cells, aspect="auto", interpolation="nearest", origin="lower")
        bits.grid(visible=False)
        bits.set(yticks=[0, 1], yticklabels=["input", "weight"], xlim=work.get_xlim())
        every = -(-len(products) // _NAMED)
        bits.set_xticks(
            list(places)[::every],
            [plain(_short(str(row["name"]))) for row in products][::every],
            rotation=30,
            ha="right",
            fontsize=7,
        )
        seen = sorted({int(row[key]) for row in products for key in keys})
        names = ["float" if b >= _FLOAT_BITS else f"{b} bit" for b in seen]
        handles = [Patch(color=color(b)) for b in seen]
        figure.legend(handles, names, loc="outside lower left", ncols=6)
        return figure


def _short(name: str) -> str:
    """The beginning of a dotted name: ticks say where in the network one is."""
    return ".".join(name.split(".")[:2])[:_LONGEST]
