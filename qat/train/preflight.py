"""Preflight: what PyTorch and its libraries can tell about a run before it has data or a folder."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from qat.errors import QatError
from qat.spec.keys import at
from qat.spec.machine import TIMM, no_accelerator
from qat.spec.run import RunSpec
from qat.spec.targets import nodes_of, with_names_of_now

if TYPE_CHECKING:
    from torch import Tensor, nn


def preflight(config: Mapping[str, Any], spec: RunSpec) -> None:
    """Check a run as far as is possible without its data; nothing is made, fetched or trained.

    Args:
        config: resolved, plain values.
        spec: the same, checked.

    Raises:
        SpecError: PyTorch sees no such accelerator; a `_target_`, or a network of torchvision or
            timm, does not exist; or an override of `quant` matches no layer.
    """
    config = with_names_of_now(config)
    with _heard_by_hydra():
        _check_accelerator(spec.trainer.get("accelerator"))
        # from what is imported soonest on
        _check_names(config, spec)
        _check_targets(config)
        if spec.quant.overrides:
            _check_overrides(spec)


def _check_accelerator(name: object) -> None:
    import torch

    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
    }
    asked = [sees for kind, sees in there.items() if name in (kind, "gpu")]
    if asked and not any(sees() for sees in asked):
        raise no_accelerator(str(name), "PyTorch sees none")


def _check_targets(config: Mapping[str, Any]) -> None:
    from qat.train.targets import resolved

    allow = tuple(config.get("allow_targets", ()))
    for key, kind in nodes_of(config):
        resolved(str(at(config, f"{key}._target_")), kind, allow=allow, key=key)


def _check_names(config: Mapping[str, Any], spec: RunSpec) -> None:
    """Refuse networks that torchvision and timm do not know; both name those that come near."""
    from qat.models.pretrained import check_pretrained
    from qat.models.timm_model import check_name

    for key, kind in nodes_of(config):
        node = at(config, key)
        if kind == "model" and node["_target_"] == TIMM:
            check_name(node["name"], pretrained=node.get("pretrained", False))
    if spec.distill is not None and spec.distill.is_pretrained_name:
        library, _, name = str(spec.distill.teacher).partition("/")
        check_pretrained(library, name)


def _check_overrides(spec: RunSpec) -> None:
    from qat.quantize.prepare import insert_quantizers

    stand_in = _stand_in(spec)
    if stand_in is not None:
        # what else may be wrong is said by the run, whose network has tensors
        with suppress(RuntimeError, NotImplementedError):
            insert_quantizers(stand_in[0], spec.quant, stand_in[1])


def _stand_in(spec: RunSpec) -> "tuple[nn.Module, Tensor] | None":
    """The run's network without weights, for some classes, and images; None if only data can tell.

    A factory of the user's own is called once, for the run, and not before.
    """
    import torch

    from qat.data.registry import build_data
    from qat.models.by_name import architecture_of
    from qat.train.targets import build_network

    architecture = architecture_of(spec.model)
    if architecture is None:
        return None
    model = {**architecture.options, "_target_": spec.model["_target_"]}
    data = build_data(spec.data, seed=spec.seed)
    try:
        with torch.device("meta"):
            shape = (2, data.channels, data.image_size, data.image_size)
            return build_network(model, data, num_classes=2), torch.zeros(shape)
    except (QatError, RuntimeError):  # said by the run, whose network has tensors
        return None


@contextmanager
def _heard_by_hydra() -> Iterator[None]:
    """A block that may import Lightning, although Hydra has not set up logging yet.

    Where the root logger has no handler, Lightning's keeps a handler of its own and stays out of
    the run's log.
    """
    silent = logging.NullHandler()
    logging.root.addHandler(silent)
    try:
        yield
    finally:
        logging.root.removeHandler(silent)
