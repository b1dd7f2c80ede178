"""Audit table, as text for a terminal."""

from qat.quantize.audit import Audit, LayerAudit

_HEADER = ("layer", "bits", "grid", "levels", "scale", "weights", "share", "input")


def audit_table(audit: Audit) -> str:
    """A table of layers, what stayed float and why, and the totals."""
    total = sum(layer.weights for layer in audit.layers)
    rows = [_HEADER, *(_row(layer, total) for layer in audit.layers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join([*lines, "", *_float_lines(audit), *_total_lines(audit)])


def _row(layer: LayerAudit, total: int) -> tuple[str, ...]:
    signed = " signed" if layer.input_signed else ""
    is_quantized = layer.source == "quantized"
    fed = f"{layer.input_bits} bit{signed}" if is_quantized else f"float ({layer.source})"
    return (
        layer.name,
        str(layer.weight_bits),
        layer.grid or "float",
        str(layer.levels) if layer.grid else "-",
        f"{layer.scale:.4g}" if layer.grid else "-",
        f"{layer.weights:,}",
        f"{100 * layer.weights / max(1, total):.1f} %",
        fed,
    )


def _float_lines(audit: Audit) -> list[str]:
    lines = [
        f"float weight: {layer.name}: {layer.reason}" for layer in audit.layers if layer.reason
    ]
    lines += [
        f"float input:  {layer.name}: {layer.input_reason}"
        for layer in audit.layers
        if layer.input_reason
    ]
    lines += [f"float values: {n}: {count:,} ({why})" for n, (count, why) in audit.other.items()]
    return [*lines, ""] if lines else []


def _total_lines(audit: Audit) -> list[str]:
    ratio = audit.float_bytes / max(1, audit.bytes)
    return [
        f"{_percent(audit.quantized_share)} of the weights that enter products on their grids, "
        f"{audit.bits:.2f} bits each on average",
        f"{_percent(audit.product_share)} of the multiplications with both operands on grids",
        f"{audit.bytes:,} bytes packed, {audit.float_bytes:,} as float: {ratio:.1f} times smaller",
        f"{audit.bops / 1e9:.4g} G bit operations (BOPs), {audit.ace / 1e9:.4g} G ACE per image",
    ]


def _percent(share: float) -> str:
    """A share in percent; all of it only where it is all."""
    return f"{min(100 * share, 99.99):.2f} %" if share < 1 else "100.00 %"
