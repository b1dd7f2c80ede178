"""Changes in place: a traced network has edges only for what its functions answer."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from qat.export.integer.refusals import refusal_of
from qat.quantize.values import changes, tensors_in

CURE = "let it answer a new tensor, and read that one (y = y + x, inplace=False, no out=)"


class Memory(NamedTuple):
    """The elements of a storage that a tensor sees.

    Attributes:
        storage: that holds them.
        length: bytes of the storage.
        item: bytes of an element.
        offset: of the first element, in elements, as `shape` and `stride` are.
        shape: of the tensor.
        stride: of the tensor.
    """

    storage: int
    length: int
    item: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Observed(ShapeProp):
    """One run of a traced network: the shape of each value, and what is changed in place.

    Attributes:
        memory: traced node -> the memory of the tensors in its value.
        changed: traced node -> the memory that it changes: that of the tensors which it is given
            and after which torch's own counters of changes differ, so that no function has to be
            known. Views share a counter: of two that one function is given, both count as changed.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.garbage_collect_values = False  # memory that is given back may become another value's
        self.memory: dict[fx.Node, set[Memory]] = {}
        self.changed: dict[fx.Node, set[Memory]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node."""
        given = [t for source in n.all_input_nodes for t in tensors_in(self.env[source])]
        before = [(_memory(t), changes(t)) for t in given]
        value = super().run_node(n)
        self.memory[n] = {_memory(t) for t in tensors_in(value)}
        self.changed[n] = {
            memory
            for (memory, version), t in zip(before, given, strict=True)
            if changes(t) != version
        }
        return value


def check_unchanged(
    observed: Observed,
    wanted: Collection[fx.Node],
    sources: Callable[[fx.Node], list[fx.Node]],
    place: Callable[[fx.Node], str],
) -> None:
    """Refuse a tensor that is read after it was changed in place, but for what the change answers.

    Where the answer alone is read, as in `x = F.relu(x, inplace=True)`, the graph says it all. A
    part that shares no element with what was changed is as it was: after `even = y[:, :, ::2]` and
    `y[:, :, 1::2].zero_()` it may be read. A part that is taken after the change reads all of `y`
    and is refused, whichever part it is. The shapes of the example decide.

    Args:
        observed: a run.
        wanted: nodes on which the network's answer depends.
        sources: the tensors that a node reads.
        place: how messages call a node.

    Raises:
        SpecError: names the change, who reads the tensor afterwards, and what to do.
    """
    order = {node: number for number, node in enumerate(observed.memory)}
    for change in (node for node, memory in observed.changed.items() if memory):
        for reader in filter(wanted.__contains__, order):  # the first one is named
            for source in sources(reader):
                # what the model itself holds is read by the next image, too
                is_stale = source.op == "get_attr" or order[source] < order[change] < order[reader]
                if is_stale and reader is not change and _shares(observed, source, change):
                    raise refusal_of(place(change), f"changes {_what(reader, place)}", CURE)


def _what(reader: fx.Node, place: Callable[[fx.Node], str]) -> str:
    if reader.op == "output":
        return "the network's answer in place"
    return f"a tensor in place that {place(reader)} reads afterwards"


def _shares(observed: Observed, source: fx.Node, change: fx.Node) -> bool:
    return any(
        overlap(one, other) for one in observed.memory[source] for other in observed.changed[change]
    )


def overlap(one: Memory, other: Memory) -> bool:
    """Whether two tensors have an element in common; elements of two sizes count as common."""
    if one.storage != other.storage or one.item != other.item:
        return one.storage == other.storage
    places = torch.arange(one.length // one.item)
    is_seen = torch.zeros(len(places), dtype=torch.bool)
    is_seen[places.as_strided(one.shape, one.stride, one.offset)] = True
    return bool(is_seen[places.as_strided(other.shape, other.stride, other.offset)].any())


def _memory(tensor: Tensor) -> Memory:
    storage = tensor.untyped_storage()
    return Memory(
        storage=int(storage._cdata),
        length=storage.nbytes(),
        item=tensor.element_size(),
        offset=int(tensor.storage_offset()),
        shape=tuple(tensor.shape),
        stride=tensor.stride(),
    )
