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

_EXPORTED = """
Each is exported in the [general ONNX form](export.md), which is read again, and as
`qat.IntegerNetwork`; "other" is the number of predictions of random images that are not the
network's. The weights are random, so that one code that the order of a sum moves can turn an
answer: where one turns, the first quantizer with another code is named, and how far from a jump of
its staircase those values lie. "exact ONNX" says whether the faithful form can hold it.
"""
_FILES = " packed, bytes | by the audit | general ONNX, bytes | other |"
_EXPORTS = f"{_FILES} exact ONNX | integers | other |"
_EXPORTS_RULE = "---:|---:|---:|---:|---|---|---:|"


def coverage_page(path: Path) -> str:
    """The whole page as Markdown."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    totals = ", ".join(f"{count} {what}" for what, count in found["totals"].items())
    has_exports = any("exports" in row for row in found["rows"])  # records of before have none
    head = (
        "| network | of | pixels | weights | on grids, % | by count | multiplications, both on "
        f"grids, % | by count | two steps | packed |{_EXPORTS if has_exports else ''} s | |"
    )
    return "\n".join(
        [
            f"{_HEAD}{_EXPORTED if has_exports else ''}\n```\n{found['command']}\n```\n",
            f"{found['origin']}. In all: {totals}. Seconds are of preparing and auditing, on one "
            "core of two.\n",
            head,
            f"|---|---|{'---:|' * 6}---|---|{_EXPORTS_RULE if has_exports else ''}---:|---|",
            *(_row(row, has_exports=has_exports) for row in found["rows"]),
            "",
        ]
    )


def _row(row: Mapping[str, Any], *, has_exports: bool) -> str:
    cells = [f"`{row['name']}`", row["family"], str(row["pixels"])]
    if row["refusal"]:
        return f"| {' | '.join([*cells, *[''] * (15 if has_exports else 8), row['refusal']])} |"
    shares = ("weight_share", "counted_weights", "product_share", "counted_products")
    cells += [f"{row['weights']:,}", *(f"{100 * row[share]:.2f}" for share in shares)]
    cells += ["yes" if row[key] else "no" for key in ("steps", "packed")]
    why = [row["fault"]]
    if has_exports:
        cells += _exports(row)
        why += [row["exports"]["general"], row["exports"]["integer"], row["exports"]["first_moved"]]
    told = "; ".join(reason for reason in dict.fromkeys(why) if reason not in ("", "not reached"))
    return f"| {' | '.join([*cells, format(row['seconds'], '.1f'), told])} |"


def _exports(row: Mapping[str, Any]) -> list[str]:
    made = row["exports"]
    is_made = {key: "no" if made[key] else "yes" for key in ("exact", "integer")}
    return [
        *(f"{row[key]:,}" for key in ("packed_bytes", "promised_bytes")),
        "no" if made["general"] else f"{made['general_bytes']:,}",
        "" if made["general"] else f"{made['general_differ']} of {made['images']}",
        is_made["exact"],
        is_made["integer"],
        "" if made["integer"] else str(made["integer_differ"]),
    ]
