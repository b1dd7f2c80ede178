"""Pareto front of cost and accuracy."""

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A network by cost and accuracy.

    Attributes:
        label: what it is.
        cost: bytes or bit operations, lower is better.
        accuracy: 0..1, higher is better.
        source: where the numbers come from; empty for our own runs.
    """

    label: str
    cost: float
    accuracy: float
    source: str = ""


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats, being no worse in both and better in one; by rising cost.

    Of points equal in both all stay.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy or point[1:3] == front[-1][1:3]:
            front.append(point)
    return front
