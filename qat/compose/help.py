"""Help text: the values of options as the specs declare them."""

import textwrap
from itertools import chain

from omegaconf import OmegaConf

from qat.spec.lightning import FLAG_CHOICES
from qat.spec.run import RunSpec
from qat.spec.schema import declared
from qat.spec.sweep import SweepSpec

_WIDTH = 110


def register_values() -> None:
    """Let `${values:KEY,COLUMN}` in conf/config.yaml stand for what `values` gives."""
    OmegaConf.register_new_resolver("values", values, replace=True)


def values(key: str, column: int = 0) -> str:
    """The allowed values of an option in one text, "a | b | c".

    Args:
        key: dotted key of a run or of a sweep, Lightning's trainer.FLAG among them.
        column: where the text begins; further lines begin there, too.

    Raises:
        ValueError: there is no such option, or it has no fixed set of values.
    """
    options = chain(declared(RunSpec), declared(SweepSpec, "sweep"))
    flags = {f"trainer.{flag}": choices for flag, choices in FLAG_CHOICES.items()}
    found = flags.get(key) or next((o.choices for o in options if o.key == key), ())
    if not found:
        raise ValueError(f"{key} has no fixed set of values")
    lines = textwrap.wrap(" | ".join(map(str, found)), _WIDTH - column, break_on_hyphens=False)
    return ("\n" + column * " ").join(lines)
