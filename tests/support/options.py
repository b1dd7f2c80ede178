"""Every choice of every quantization option, in few networks; read from the options themselves."""

import dataclasses
from contextlib import suppress
from functools import cache
from itertools import cycle, islice, product
from typing import get_type_hints
from unittest.mock import patch

from torch import nn

from qat.errors import SpecError
from qat.spec.distill import FeatureSpec, LogitSpec
from qat.spec.quant import ActivationSpec, EndsSpec, Override, QuantSpec, RuleSpec, WeightSpec
from qat.spec.schema import declared


def network():
    """Two activations and two inner weights, each of options of its own, a norm, both ends."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


SHAPE, CLASSES = (3, 8, 8), 5  # its images and classes
SECOND, INNER = "5", "6"  # its second ReLU, and the second of its inner weights


# what types a class has is asked for each of some thousand groups
@patch("qat.spec.schema.get_type_hints", cache(get_type_hints))
def groups_of(cls, *together, keep=lambda group: True):
    """A few option groups that are allowed and hold every choice that any of them has.

    Args:
        cls: dataclass of options.
        together: tuples of names whose allowed combinations are all held.
        keep: which groups are asked for at all.
    """
    choices = {
        option.key: (*option.choices, *([None] * option.is_optional))
        for option in declared(cls)
        if option.choices
    }
    found = []
    for names in (*together, *((name,) for name in choices)):
        for values in product(*(choices[name] for name in names)):
            if all(tuple(getattr(g, name) for name in names) != values for g in found):
                # the others take turns, so that they meet as many different ones as may be
                turned = {
                    name: (*own[len(found) % len(own) :], *own[: len(found) % len(own)])
                    for name, own in choices.items()
                }
                wanted = turned | {n: (v,) for n, v in zip(names, values, strict=True)}
                found += islice(filter(keep, _allowed(cls, wanted)), 1)
    return found


def _allowed(cls, choices):
    for values in product(*choices.values()):
        with suppress(SpecError):
            yield cls(**dict(zip(choices, values, strict=True)))


@cache
def quantizations():
    """Label -> options: every rule, method, grid, bit width, estimator, kind of step and end."""
    weights = groups_of(
        WeightSpec,
        ("method", "bits", "grid"),
        ("method", "grid", "granularity"),
        # without a grid a weight has the one of its bits
        keep=lambda w: w.is_quantized and (w.is_in_graph or w.grid is not None),
    )
    activations = groups_of(
        ActivationSpec, ("kind", "bits"), ("kind", "derivative"), keep=lambda a: a.is_quantized
    )
    rules = [rule.name for rule in groups_of(RuleSpec)]
    projecting, ends = cycle(r for r in rules if r != "float_only"), cycle(groups_of(EndsSpec))
    image = next(option for option in declared(QuantSpec) if option.key == "input_bits")
    images = cycle((None, *image.choices))
    count = -(-max(len(weights), len(activations)) // 2)
    pairs = zip(cycle(weights[::2]), cycle(weights[1::2]), strict=False)
    both = cycle(activations)
    found = {}
    for own in islice(pairs, count):
        is_projected = not all(weight.is_in_graph for weight in own)
        rule = next(projecting) if is_projected else "float_only"
        first, second = next(both), next(both)
        label = "-".join([rule, *map(_name, (*own, first, second))])
        found[label] = QuantSpec(
            rule=RuleSpec(name=rule, hard_from=1.0),  # relaxes to its end
            weight=own[0],
            activation=first,
            ends=next(ends),
            input_bits=next(images),
            overrides=(
                Override(match=SECOND, activation=dataclasses.asdict(second)),
                Override(match=INNER, weight=dataclasses.asdict(own[1])),
            ),
        )
    float_weights = QuantSpec(rule=RuleSpec(name="float_only"), weight=WeightSpec(bits=32))
    return found | {
        "float-weights": float_weights,
        "float-activations": QuantSpec(activation=ActivationSpec(bits=32)),
    }


def _name(group):
    if isinstance(group, WeightSpec):
        parts = [group.grid or group.method, group.bits, group.granularity, group.derivative]
    else:
        parts = [group.kind, group.bits, group.derivative]
    return "_".join(str(part) for part in parts if part not in ("tensor", None))


@cache
def distillations():
    """Label -> (feature options, logit options): every loss, order, reduction and adapter."""
    features = groups_of(FeatureSpec, ("loss", "order"))
    logits = cycle(groups_of(LogitSpec))
    pairs = [(feature, next(logits)) for feature in features]
    return {f"{f.loss}-{f.order}-{f.reduction}-{f.adapter}-{o.loss}": (f, o) for f, o in pairs}
