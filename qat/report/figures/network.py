"""Network figure: every product in the order of execution, its operands' bits as colours."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qat.report.figures.curves import WIDTH
from qat.report.figures.style import COLORS, panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLOAT = COLORS[1]  # stands out among the blues
_FLOAT_BITS = 32
_NAMED = 16  # ticks at most
_LONGEST = 18  # letters of a tick


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
    with panels(2, 1, width=2 * WIDTH, height=1.5) as (figure, axes):
        work, bits = axes[:, 0]
        both = [max(int(row["weight_bits"]), int(row["input_bits"])) for row in products]
        shares = [100 * int(row["macs"]) / total for row in products]
        work.bar(places, shares, width=0.9, color=[color(b) for b in both])
        work.set(ylabel="multipli-\ncations, %", xlim=(-0.6, len(products) - 0.4), xticks=[])
        keys = ("input_bits", "weight_bits")  # from below
        cells = [[color(int(row[key])) for row in products] for key in keys]
        bits.imshow(cells, aspect="auto", interpolation="nearest", origin="lower")
        bits.grid(visible=False)
        bits.set(yticks=[0, 1], yticklabels=["input", "weight"], xlim=work.get_xlim())
        names = [_short(str(row["name"])) for row in products]
        ticks = _spaced([i for i in places if i == 0 or names[i] != names[i - 1]], len(names))
        bits.set_xticks(
            ticks,
            [plain(names[tick]) for tick in ticks],
            rotation=30,
            ha="right",
            fontsize=7,
        )
        seen = sorted({int(row[key]) for row in products for key in keys})
        words = ["float" if b >= _FLOAT_BITS else f"{b} bit" for b in seen]
        handles = [Patch(color=color(b)) for b in seen]
        figure.legend(handles, words, loc="outside lower left", ncols=6)
        return figure


def _spaced(places: Sequence[int], length: int) -> list[int]:
    """Those places that leave room for a name each."""
    kept: list[int] = []
    for place in places:
        if not kept or place - kept[-1] >= length / _NAMED:
            kept.append(place)
    return kept


def _short(name: str) -> str:
    """The beginning of a dotted name: ticks say where in the network one is."""
    return ".".join(name.split(".")[:2])[:_LONGEST]
