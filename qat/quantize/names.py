"""Names of weights: a layer for its `weight`, the parameter itself for others."""

import re

_LATENT = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original$")


def plain_key(key: str) -> str:
    """A key of a state dict as it is without quantizers: of a weight, not of what keeps it."""
    return _LATENT.sub(r"\1\2", key)


def weight_name(parameter: str) -> str:
    """Name of a weight: its layer's, or the parameter's own where it is no layer's `weight`.

    Args:
        parameter: full name, also of what a parametrization keeps.
    """
    plain = plain_key(parameter)
    return "" if plain == "weight" else plain.removesuffix(".weight")
