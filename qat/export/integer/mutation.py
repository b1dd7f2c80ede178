"""Changes in place: a traced network has edges only for what its functions answer."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from qat.export.integer.refusals import refusal_of
from qat.quantize.flow import changes, tensors_in

CURE = "let it answer a new tensor, and read that one (y = y + x, inplace=False, no out=)"


class Observed(ShapeProp):
    """One run of a traced network: the shape of each value, and what is changed in place.

    Attributes:
        storages: traced node -> the memory that its value lies in.
        changed: traced node -> the memory that it changes. Told by torch's own counters of
            changes, so that no function has to be known for it.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.garbage_collect_values = False  # memory that is given back may become another value's
        self.storages: dict[fx.Node, set[int]] = {}
        self.changed: dict[fx.Node, set[int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node."""
        given = [t for source in n.all_input_nodes for t in tensors_in(self.env[source])]
        before = [(_storage(t), changes(t)) for t in given]
        value = super().run_node(n)
        self.storages[n] = {_storage(t) for t in tensors_in(value)}
        self.changed[n] = {
            storage
            for (storage, version), t in zip(before, given, strict=True)
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

    Where the answer alone is read, as in `x = F.relu(x, inplace=True)`, the graph says it all.

    Args:
        observed: a run.
        wanted: nodes on which the network's answer depends.
        sources: the tensors that a node reads.
        place: how messages call a node.

    Raises:
        SpecError: names the change, who reads the tensor afterwards, and what to do.
    """
    order = {node: number for number, node in enumerate(observed.storages)}
    for change in (node for node, storages in observed.changed.items() if storages):
        for reader in filter(wanted.__contains__, order):  # the first one is named
            for source in sources(reader):
                # what the model itself holds is read by the next image, too
                is_stale = source.op == "get_attr" or order[source] < order[change] < order[reader]
                is_shared = observed.storages[source] & observed.changed[change]
                if is_stale and is_shared and reader is not change:
                    raise refusal_of(place(change), f"changes {_what(reader, place)}", CURE)


def _what(reader: fx.Node, place: Callable[[fx.Node], str]) -> str:
    if reader.op == "output":
        return "the network's answer in place"
    return f"a tensor in place that {place(reader)} reads afterwards"


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
