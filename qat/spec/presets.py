"""Quantization options by name: bcgd_w1a4, lsq_w4a4, float, as `quant=NAME` of the command."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

from qat.errors import SpecError, shown
from qat.spec.quant import FLOAT_BITS, QuantSpec, RuleName

_PATTERN = re.compile(r"(?P<method>[a-z_]+)_w(?P<weight>\d+)a(?P<activation>\d+)")
# what a method in the graph asks of weights and activations
_IN_GRAPH: dict[str, dict[str, dict[str, Any]]] = {
    "lsq": {
        "weight": {"method": "lsq"},
        "activation": {"kind": "lsq", "derivative": "identity"},
    },
    "dorefa": {
        "weight": {"method": "dorefa"},
        "activation": {"kind": "dorefa", "derivative": "identity"},
    },
    "pact": {
        "weight": {"method": "dorefa"},
        "activation": {"kind": "pact", "derivative": "identity", "step_start": "batches"},
    },
    "reste": {"weight": {"method": "reste"}, "activation": {"derivative": "power"}},
    "biper": {"weight": {"method": "biper"}, "activation": {}},
}
_RULES = tuple(name for name in get_args(RuleName) if name != "float_only")
_SIGN = {"kind": "sign", "derivative": "power"}  # activations of one bit


def named_quantization(name: str) -> QuantSpec:
    """Options of a method at a width, by the name they have in `conf/quant`: METHOD_wBITSaBITS.

    Args:
        name: "float", or an update rule (bcgd, binary_connect, binary_relax) or a method in the
            graph (lsq, dorefa, pact, reste, biper) with bits of weights and activations, 1 .. 8 or
            32 for float: bcgd_w1a4. Not only the widths that have a file in `conf/quant`.

    Raises:
        SpecError: no such name, or options that contradict each other.
    """
    if name == "float":
        return _options("float_only", {}, {}, FLOAT_BITS, FLOAT_BITS)
    found = _PATTERN.fullmatch(name)
    if found is None or found["method"] not in (*_RULES, *_IN_GRAPH):
        known = ", ".join([*_RULES, *_IN_GRAPH])
        raise SpecError(
            f"quantization {name!r} has no such name; use float or METHOD_wBITSaBITS with a method "
            f"of {known}, for example bcgd_w1a4"
        )
    method, bits = found["method"], (int(found["weight"]), int(found["activation"]))
    own = _IN_GRAPH.get(method, {"weight": {}, "activation": {}})
    rule = method if method in _RULES else "float_only"
    return _options(rule, own["weight"], own["activation"], *bits)


def quantization(options: str | Mapping[str, Any] | QuantSpec) -> QuantSpec:
    """Options of a quantization, however they are given.

    Args:
        options: a name (`named_quantization`), the config group `quant` as a mapping, or a spec.

    Raises:
        SpecError: what is given is none of these, or wrong in itself.
    """
    if isinstance(options, QuantSpec):
        return options
    if isinstance(options, str):
        return named_quantization(options)
    if isinstance(options, Mapping):
        return QuantSpec.from_dict(_plain(options))
    raise SpecError(
        f"quantization options are a {type(options).__name__}; give a name as 'bcgd_w1a4', a "
        "QuantSpec, or a mapping of its options"
    )


def differences(then: QuantSpec, now: QuantSpec) -> str:
    """What two quantizations differ in, key by key.

    >>> differences(named_quantization("bcgd_w1a4"), named_quantization("bcgd_w2a8"))
    'quant.weight.bits=1 then, 2 now; quant.activation.bits=4 then, 8 now'
    """
    old, new = dict(_flat("quant", asdict(then))), dict(_flat("quant", asdict(now)))
    keys = [key for key in old if old[key] != new.get(key)]
    return "; ".join(f"{key}={shown(old[key])} then, {shown(new.get(key))} now" for key in keys)


def _flat(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield path, node
        return
    for key, child in node.items():
        yield from _flat(f"{path}.{key}", child)


def _options(
    rule: str, weight: dict[str, Any], activation: dict[str, Any], w_bits: int, a_bits: int
) -> QuantSpec:
    sign = _SIGN if a_bits == 1 and "kind" not in activation else {}
    return QuantSpec.from_dict(
        {
            "rule": {"name": rule},
            "weight": {**weight, "bits": w_bits},
            "activation": {**sign, **activation, "bits": a_bits},
        }
    )


def _plain(node: Any) -> Any:
    """Mappings and sequences of other packages (OmegaConf's) as dicts and lists."""
    if isinstance(node, Mapping):
        return {key: _plain(child) for key, child in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_plain(child) for child in node]
    return node
