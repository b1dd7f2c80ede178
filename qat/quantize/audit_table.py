"""Audit table, as text for a terminal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from qat.errors import percent
from qat.quantize.audit import Audit
from qat.quantize.audit_products import LayerAudit

_HEADER = ("layer", "bits", "grid", "levels", "scale", "weights", "share", "mult.", "input")
_MOST_ROWS = 40  # a longer table shows stages instead of layers
_MACS = "multiplications"
_NAMED = 3  # names of a list of layers that are all float for one reason


def audit_table(audit: Audit) -> str:
    """A table of what multiplies, what is float and why, and the totals.

    A row is a product: its weight's bits, grid, levels, scale and number, its share of all weights
    and of all multiplications, and what its input is. Of a network of more than 40 products a row
    is a stage: consecutive products whose names begin alike, with their number in brackets.
    """
    weights = sum(layer.weights for layer in audit.layers)
    rows = [_row(name, stage, weights, audit.macs) for name, stage in _stages(audit.layers)]
    widths = [max(len(row[i]) for row in [_HEADER, *rows]) for i in range(len(_HEADER))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in [_HEADER, *rows]
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join([*lines, "", *_float_lines(audit), *_total_lines(audit)])


def _stages(layers: Sequence[LayerAudit]) -> list[tuple[str, list[LayerAudit]]]:
    """Each product by itself; of many, those in a row whose names begin alike, as one."""
    if len(layers) <= _MOST_ROWS:
        return [(layer.name, [layer]) for layer in layers]
    deepest = max(layer.name.count(".") for layer in layers) + 1
    stages: list[tuple[str, list[LayerAudit]]] = []
    for depth in range(deepest, 0, -1):
        groups = groupby(layers, key=lambda layer: ".".join(layer.name.split(".")[:depth]))
        stages = [(name, list(members)) for name, members in groups]
        if len(stages) <= _MOST_ROWS:
            break
    return [(f"{n} ({len(m)})" if len(m) > 1 else m[0].name, m) for n, m in stages]


def _row(name: str, stage: Sequence[LayerAudit], weights: int, macs: int) -> tuple[str, ...]:
    own = [layer for layer in stage if layer.weights]
    scales = [layer.scale for layer in own if layer.grid]
    levels = [layer.levels for layer in own if layer.grid]
    return (
        name,
        _listed(str(layer.weight_bits) for layer in own or stage),
        _listed(layer.grid or "float" for layer in own or stage),
        _range(levels, str),
        _range(scales, "{:.4g}".format),
        f"{sum(layer.weights for layer in own):,}",
        _share(sum(layer.weights for layer in own), weights),
        _share(sum(layer.macs for layer in stage), macs),
        _listed(map(_fed, stage)),
    )


def _fed(layer: LayerAudit) -> str:
    if layer.source != "quantized":
        return f"float ({layer.source})"
    return f"{layer.input_bits} bit{' signed' if layer.input_signed else ''}"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _range(numbers: Sequence[float], shown: Callable[[float], str]) -> str:
    if not numbers:
        return "-"
    return "..".join(dict.fromkeys(map(shown, (min(numbers), max(numbers)))))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def _float_lines(audit: Audit) -> list[str]:
    """What is float: where, for which reason, and how much of it all."""
    weights = sum(layer.weights for layer in audit.layers)
    own = [layer for layer in audit.layers if layer.weights]
    others = [layer for layer in audit.layers if not layer.weights]
    lines = [
        *_reasons("weight: ", [(x, x.reason, x.weights) for x in own], weights, "weights"),
        *_reasons("product:", [(x, x.reason, x.macs) for x in others], audit.macs, _MACS),
        *_reasons("input:  ", [(x, x.input_reason, x.macs) for x in own], audit.macs, _MACS),
        *(f"float values:  {n}: {count:,} ({why})" for n, (count, why) in audit.other.items()),
    ]
    return [*lines, ""] if lines else []


def _reasons(
    title: str, found: Sequence[tuple[LayerAudit, str, int]], whole: int, what: str
) -> Iterator[str]:
    """A line for each reason, with the names of those that have it and their share."""
    for reason in dict.fromkeys(reason for _, reason, _ in found if reason):
        layers = [(layer.name, size) for layer, own, size in found if own == reason]
        names = [name for name, _ in layers[:_NAMED]]
        more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
        share = _share(sum(size for _, size in layers), whole)
        yield f"float {title} {', '.join(names)}{more}: {reason} ({share} of the {what})"


def _total_lines(audit: Audit) -> list[str]:
    ratio = audit.float_bytes / max(1, audit.bytes)
    return [
        f"{percent(audit.quantized_share)} of the weights that enter products on their grids, "
        f"{audit.bits:.2f} bits each on average",
        f"{percent(audit.product_share)} of the multiplications with both operands on grids",
        f"{audit.bytes:,} bytes packed, {audit.float_bytes:,} as float: {ratio:.1f} times smaller",
        f"{audit.bops / 1e9:.4g} G bit operations (BOPs), {audit.ace / 1e9:.4g} G ACE per image",
    ]
