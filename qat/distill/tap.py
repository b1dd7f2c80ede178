"""Feature taps: maps out of any network, by forward hooks."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qat.errors import SpecError


class FeatureTap:
    """The outputs of named modules, as a context manager.

        with FeatureTap(net, ["layer1", "layer2"]) as tap:
            logits = net(images)
            maps = tap.take()

    Under activation checkpointing it takes use_reentrant=False: the other variant runs a module
    without a graph, and its maps have no gradient.

    Hooks are put in on entering and removed on leaving; `take` hands the maps of the last forward
    pass over and forgets them, so that no graph outlives its step. Enter before `torch.compile`
    traces the network.

    Args:
        net: any network.
        names: dotted names of modules whose output is a tensor; `qat.quantize.stages` finds them.

    Raises:
        SpecError: a name is no module of the network.
    """

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        modules = dict(net.named_modules())
        for name in names:
            if name not in modules or not name:
                children = ", ".join(child for child, _ in net.named_children())
                raise SpecError(f"layer {name!r} is no module of the network; it holds {children}")
        self.names = tuple(names)
        self._modules = [modules[name] for name in names]
        self._maps: dict[int, Tensor] = {}
        self._versions: dict[int, int] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            module.register_forward_hook(self._keeping(place))
            for place, module in enumerate(self._modules)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._maps.clear()
        self._versions.clear()

    def _keeping(self, place: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, out: Tensor) -> None:
            if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
                return  # run again within a backward pass, by activation checkpointing
            self._maps[place] = out
            if not torch.compiler.is_compiling() and not out.is_inference():
                self._versions[place] = out._version

        return keep

    def take(self) -> list[Tensor]:
        """The maps of the last forward pass, in the order of the names.

        Raises:
            SpecError: a module was not run, or its output was changed in place afterwards.
        """
        missing = [name for place, name in enumerate(self.names) if place not in self._maps]
        if missing:
            raise SpecError(f"layer {missing[0]!r} was not run in the last forward pass")
        for place, version in self._versions.items():
            if self._maps[place]._version != version:
                raise SpecError(
                    f"the output of layer {self.names[place]!r} is changed in place by the module "
                    "after it; name another layer, or build the network without in-place modules"
                )
        maps = [self._maps[place] for place in range(len(self.names))]
        self._maps.clear()
        self._versions.clear()
        return maps
