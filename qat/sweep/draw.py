"""Random draws of overrides from a sweep's parameters; standard library only."""

import math
import random
import re
from collections.abc import Mapping
from typing import Any

from qat.spec.overrides import as_override
from qat.spec.sweep import SweepSpec


def listed(parameters: Mapping[str, Any]) -> list[str]:
    """Lists of values as overrides with lists of choices."""
    return [f"{key}={','.join(map(as_text, values))}" for key, values in parameters.items()]


def drawn(spec: SweepSpec) -> list[list[str]]:
    """The overrides of each of `trials` draws; draw i depends on the seed and i only.

    A list is drawn from uniformly, a range uniformly or, with log, uniformly in the logarithm; a
    range of integers gives integers, one with a step multiples of it from `low` on.
    """
    return [
        [
            f"{key}={as_text(_value(values, random.Random(f'{spec.seed} {i} {key}')))}"
            for key, values in spec.parameters.items()
        ]
        for i in range(spec.trials)
    ]


def as_text(value: Any) -> str:
    """A value in the grammar of overrides; names as they are, so that labels stay readable."""
    is_name = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./-]*", value)
    return str(value) if is_name else as_override(value)


def _value(values: Any, generator: random.Random) -> Any:
    if not isinstance(values, Mapping):
        return generator.choice(list(values))
    low, high, step = values["low"], values["high"], values.get("step")
    if values.get("log"):
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
        return round(drawn) if is_integer(values) else float(f"{drawn:.4g}")
    if step is not None:
        return low + step * generator.randrange(int((high - low) / step + 1e-9) + 1)
    if is_integer(values):
        return generator.randint(low, high)
    return float(f"{generator.uniform(low, high):.4g}")


def is_integer(values: Mapping[str, Any]) -> bool:
    """Whether a range holds integers only."""
    return isinstance(values["low"], int) and isinstance(values["high"], int)
