"""Optimal uniform quantizer of normal data: where alternating grids and learned steps start."""

# M -> step d that minimises E (z - d q)^2, z ~ N(0, 1), q = the nearest code in -M .. M. The same d
# is optimal for |z| and the codes 0 .. M. Root of the stationarity condition, found in float64.
_STEPS = {
    1: 1.2240063619249617,
    3: 0.6507697039968384,
    7: 0.3534113155714074,
    15: 0.19324852439718565,
    31: 0.10548758605828161,
    63: 0.05726128072097868,
    127: 0.03087008604035228,
    255: 0.016528152830826863,
}


def gaussian_step(largest: int) -> float:
    """Mean-square optimal step of the codes -largest .. largest for standard normal data.

    The fixed point of Lloyd's alternation with nearest rounding; equally the optimal step of the
    codes 0 .. largest for the half-normal |z|.

    Args:
        largest: largest code, 2^b - 1 for b = 1 .. 8.

    Raises:
        KeyError: for any other `largest`.

    Source: the steps of 1, 2 and 4 bits in the authors' code of arXiv:1808.05240 (1.2221, 0.6511,
    0.1946) are finite-sample estimates of these.
    """
    return _STEPS[largest]
