"""Target resolution: a `_target_` resolved, checked and called; the only door from text to code."""

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from qat.errors import QatError, SpecError
from qat.spec.targets import ALLOWED, Kind, check_node, told, with_names_of_now
from qat.storage.reading import reason_of

if TYPE_CHECKING:
    from torch import nn

    from qat.data.module import ImageData


def instantiated(
    node: Mapping[str, Any], kind: Kind, *, allow: Sequence[str] = (), key: str = "", **extra: Any
) -> Any:
    """Call the `_target_` of a config node with its other entries as plain keyword arguments.

    An optimizer becomes a partial that wants its parameters.

    Args:
        node: `_target_` and arguments.
        kind: what the node stands for.
        allow: prefixes of the user's own, from the command line and never from a file.
        key: of the node in its config, for messages; by default the kind's name.
        extra: further arguments, which win.

    Raises:
        SpecError: what the name stands for is not in the table `qat.spec.targets.ALLOWED`, or the
            call fails; QatErrors of the callee pass as they are.
    """
    key, node = key or kind, with_names_of_now(node)
    check_node(node, kind, key, allow)
    called = resolved(str(node["_target_"]), kind, allow=allow, key=key)
    arguments = {k: v for k, v in node.items() if not k.startswith("_")} | extra
    try:
        return partial(called, **arguments) if kind == "optimizer" else called(**arguments)
    except QatError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SpecError(f"{node['_target_']}: {reason}") from error


def build_network(
    model: Mapping[str, Any],
    data: "ImageData",
    *,
    num_classes: int | None = None,
    allow: Sequence[str] = (),
) -> "nn.Module":
    """Float network of a config group `model`, new, for the images and classes of a task.

    Args:
        model: `_target_` and options.
        data: of the task.
        num_classes: K; None for that of `data`.
        allow: as `instantiated`.

    Raises:
        SpecError: as `instantiated`.
    """
    network: nn.Module = instantiated(
        model,
        "model",
        allow=allow,
        num_classes=data.num_classes if num_classes is None else num_classes,
        in_channels=data.channels,
        image_size=data.image_size,
    )
    return network


def resolved(target: str, kind: Kind, *, allow: Sequence[str] = (), key: str = "") -> Any:
    """What a dotted name stands for, if the table allows it.

    What counts is the object: its own module, and that it is a class of the kind or a registered
    builder of networks; not the way by which the name reaches it.

    Args:
        target: name that `qat.spec.targets.is_named` allows.
        kind: what it must stand for.
        allow: as `instantiated`.
        key: as `instantiated`.

    Raises:
        SpecError: nothing has this name, or the table does not allow what has it.
    """
    found = _found(target, key or kind)
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
    allowed = ALLOWED[kind]
    is_ours = target in allowed.names
    is_users = home.startswith(tuple(allow)) and target.startswith(tuple(allow))
    is_theirs = home.startswith(tuple(f"{module}." for module in allowed.modules))
    is_kind = _derives(found, allowed.base) or (allowed.builders and _is_builder(found))
    is_own_builder = kind == "model" and callable(found)
    if is_ours or (is_theirs and is_kind) or (is_users and (is_kind or is_own_builder)):
        return found
    raise SpecError(
        f"{key or kind}._target_={target} may not be called: it is {home.rstrip('.')}, no "
        f"{allowed.title} that may be; {told(kind, allow)}"
    )


def _found(target: str, key: str) -> Any:
    """The object of a dotted name: its longest part that is a module, then attributes."""
    parts = target.split(".")
    for count in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise SpecError(f"{key}._target_={target} needs the package {error.name}") from error
        except Exception as error:  # a module of the user's own may raise anything
            raise SpecError(
                f"{key}._target_={target}: {name} cannot be imported ({reason_of(error)})"
            ) from error
        for part in parts[count:]:
            found = getattr(found, part, None)
        if found is not None:
            return found
    raise SpecError(f"{key}._target_={target} does not exist")


def _derives(found: Any, base: str) -> bool:
    """Whether an object is a class below the one of this full name."""
    classes = found.__mro__ if isinstance(found, type) else ()
    return any(f"{c.__module__}.{c.__qualname__}" == base for c in classes)


def _is_builder(found: Any) -> bool:
    """Whether an object is the function by which torchvision or timm builds one of its networks."""
    module, name = str(getattr(found, "__module__", "")), getattr(found, "__name__", "")
    if module.startswith("torchvision.models."):
        from torchvision.models import get_model_builder, list_models

        return name in list_models() and get_model_builder(name) is found
    if module.startswith("timm.models."):
        from timm.models import is_model, model_entrypoint

        return is_model(name) and model_entrypoint(name) is found
    return False
