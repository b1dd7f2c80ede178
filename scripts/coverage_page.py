"""The page of coverage: what became of one network of every module of timm and of torchvision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_HEAD = """# Coverage

<!-- written by scripts/pages.py from results/coverage/networks.yaml; not by hand -->

One network of every module of timm that classifies images, and one of every family of torchvision:
prepared for 1-bit weights and 4-bit activations, trained for two steps, audited, packed, and
opened again. "By count" is what the values of the multiplied tensors show, by
[a count](audit.md#what-the-audit-claims) that knows of no quantizer; an audit that says more than
that is a false claim.
"""


def coverage_page(path: Path) -> str:
    """The whole page as Markdown."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    totals = ", ".join(f"{count} {what}" for what, count in found["totals"].items())
    head = (
        "| network | of | pixels | weights | on grids, % | by count | multiplications, both on "
        "grids, % | by count | two steps | packed | s | |"
    )
    return "\n".join(
        [
            f"{_HEAD}\n```\n{found['command']}\n```\n",
            f"{found['origin']}. In all: {totals}. Seconds are of preparing and auditing, on one "
            "core of two.\n",
            head,
            "|---|---|" + "---:|" * 6 + "---|---|---:|---|",
            *map(_row, found["rows"]),
            "",
        ]
    )


def _row(row: Mapping[str, Any]) -> str:
    cells = [f"`{row['name']}`", row["family"], str(row["pixels"])]
    if row["refusal"]:
        return f"| {' | '.join([*cells, *[''] * 8, row['refusal']])} |"
    shares = ("weight_share", "counted_weights", "product_share", "counted_products")
    cells += [f"{row['weights']:,}", *(f"{100 * row[share]:.2f}" for share in shares)]
    cells += ["yes" if row[key] else "no" for key in ("steps", "packed")]
    return f"| {' | '.join([*cells, format(row['seconds'], '.1f'), row['fault']])} |"
