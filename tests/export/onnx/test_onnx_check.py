"""Counting the codes that a runtime moves: none of its own making is counted twice."""

import pytest
import torch

from qat.export.integer.graph import Quantize
from qat.export.integer.network import IntegerNetwork, as_codes, moved_codes
from qat.export.onnx.fast_steps import sum_steps
from qat.export.onnx.moved_codes import onnx_moved_codes
from support.exported import SPECS, exported, images, resnet8

IMAGES = images(8)


def codes_of(network):
    values = network.values(IMAGES)
    return {node.name: values[node.name] for node in network.graph if isinstance(node, Quantize)}


def test_its_own_codes_are_never_counted():
    network = IntegerNetwork(exported(resnet8, SPECS["w1a4"])[1])
    counts = moved_codes(network, IMAGES, codes_of(network))
    assert len(counts) == 7
    assert {moved for moved, _ in counts.values()} == {0}
    assert all(total == 8 * 8 * 8 * 16 for _, total in list(counts.values())[:3])


def test_a_moved_code_counts_where_it_moved_and_not_behind():
    network = IntegerNetwork(exported(resnet8, SPECS["w1a4"])[1])
    given = codes_of(network)
    first = next(iter(given))
    rule = network.rules[first]
    integers = given[first].terms[0].integers.clone()
    integers[0, :3, 0, 0] = (integers[0, :3, 0, 0] + 1) % (rule.high + 1)
    given[first] = as_codes(integers * rule.step, rule)
    # whatever the others would be now, they are given as they were before
    counts = moved_codes(network, IMAGES, given)
    assert next(iter(counts.values()))[0] == 3
    network_of_moved = {
        **given,
        **{
            k: v
            for k, v in network.values(IMAGES, given={first: given[first]}).items()
            if k in given
        },
    }
    counts = moved_codes(network, IMAGES, network_of_moved)
    assert [moved for moved, _ in counts.values()] == [3, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("name", ["w1a4", "w2a4", "input-bits", "w1a1-shift"])
def test_the_faithful_form_moves_hardly_any_and_the_fast_one_more(name):
    graph = exported(resnet8, SPECS[name])[1]
    faithful = sum(moved for moved, _ in onnx_moved_codes(graph, IMAGES).values())
    assert faithful <= 2
    steps = sum_steps(graph, [IMAGES])
    if not steps:  # behind signs nothing is added in bytes
        return
    fast = onnx_moved_codes(graph, IMAGES, steps=steps)
    total = sum(count for _, count in fast.values())
    assert faithful < sum(moved for moved, _ in fast.values()) < total / 10
    assert torch.tensor([moved for moved, _ in fast.values()]).count_nonzero() <= 3  # the sums
