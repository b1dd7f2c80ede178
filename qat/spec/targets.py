"""Allowed targets: the table of what a config may call, held against it before torch loads.

A `_target_` is code that a config names. Only six nodes of a config may hold one, each of one kind;
a kind allows objects whose own module lies in a list, and that are what the kind says. The name
alone decides nothing: `PACKAGE.MODULE.torch.load` begins as an allowed name does and reaches
everything that MODULE imports, so what a name stands for is checked when it is resolved
(`qat.train.targets`). Standard library only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qat.errors import SpecError
from qat.spec.keys import at, entries

Kind = Literal["model", "optimizer", "callback", "logger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What may be called for one kind of node.

    Attributes:
        title: of the kind, for messages.
        names: whole names, of our own package.
        modules: of other packages; what is called must be defined in one or below it.
        base: full name of the class that what is called must derive from.
        builders: whether functions that are registered as builders of networks are allowed, too.
    """

    title: str
    names: tuple[str, ...] = ()
    modules: tuple[str, ...]
    base: str
    builders: bool = False


ALLOWED: dict[Kind, Allowed] = {
    "model": Allowed(
        title="network",
        names=(
            "qat.models.small.small_model",
            "qat.models.resnet.torchvision_resnet",
            "qat.models.timm_model.timm_model",
        ),
        modules=("torchvision.models", "timm.models"),
        base="torch.nn.modules.module.Module",
        builders=True,
    ),
    "optimizer": Allowed(
        title="optimizer",
        modules=("torch.optim", "timm.optim"),
        base="torch.optim.optimizer.Optimizer",
    ),
    "callback": Allowed(
        title="Lightning callback",
        names=(
            "qat.lit.measure.quant_stats.QuantStats",
            "qat.lit.measure.diagnostics.Diagnostics",
            "qat.lit.measure.records.Records",
        ),
        modules=("lightning.pytorch.callbacks",),
        base="lightning.pytorch.callbacks.callback.Callback",
    ),
    "logger": Allowed(
        title="Lightning logger",
        modules=("lightning.pytorch.loggers",),
        base="lightning.pytorch.loggers.logger.Logger",
    ),
}
# names under which earlier versions recorded what now lies elsewhere
MOVED = {
    "qat.lit.models.small_model": "qat.models.small.small_model",
    "qat.lit.models.torchvision_resnet": "qat.models.resnet.torchvision_resnet",
    "qat.lit.models.timm_model": "qat.models.timm_model.timm_model",
    "qat.lit.callbacks.QuantStats": "qat.lit.measure.quant_stats.QuantStats",
    "qat.lit.diagnostics.Diagnostics": "qat.lit.measure.diagnostics.Diagnostics",
    "qat.lit.records.Records": "qat.lit.measure.records.Records",
}
_FIRST = {now: first for first, now in MOVED.items()}
# arguments that make a library read a file, or start a program, that the config names
REFUSED_ARGUMENTS = frozenset(
    {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "settings"}
)
# arguments by which a callback or logger writes and deletes elsewhere than in the run folder
_PLACES = frozenset(
    {"dir", "dirpath", "filename", "log_dir", "root_dir", "save_dir", "tracking_uri"}
)
# arguments that send what is logged to an account or a server that the config names
_ACCOUNTS = frozenset(
    {"api_key", "artifact_location", "base_url", "entity", "experiment_key", "host"}
    | {"project_key", "teamspace", "url_override", "workspace"}
)
# Hydra's own keys of a node that are obeyed; the others would call, or leave checks out
_NODE_KEYS = frozenset({"_target_", "_partial_", "_convert_"})


def with_names_of_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in which every `_target_` has today's name, whatever version recorded it."""
    renamed: dict[str, Any] = _renamed(config, MOVED)
    return renamed


def with_first_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in which every `_target_` has its first name, so that hashes outlive a move."""
    renamed: dict[str, Any] = _renamed(config, _FIRST)
    return renamed


def name_of_now(target: Any) -> Any:
    """The name that a `_target_` has now."""
    return MOVED.get(target, target) if isinstance(target, str) else target


def first_name(target: Any) -> Any:
    """The name that a `_target_` had first."""
    return _FIRST.get(target, target) if isinstance(target, str) else target


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    if isinstance(node, Mapping):
        return {
            key: names.get(child, child)
            if key == "_target_" and isinstance(child, str)
            else _renamed(child, names)
            for key, child in node.items()
        }
    if isinstance(node, (list, tuple)):
        return [_renamed(child, names) for child in node]
    return node


def check_targets(config: Mapping[str, Any], allow: Sequence[str] = ()) -> None:
    """Hold every `_target_` of a config against the table, as far as its name tells.

    Args:
        config: plain values of a whole run.
        allow: prefixes of the user's own, from the command line and never from a file.

    Raises:
        SpecError: a name that may not be called, a target inside the arguments of another or where
            none belongs, or an argument that names a file to be loaded.
    """
    nodes = dict(nodes_of(config))
    for key, kind in nodes.items():
        node = at(config, key)
        if not isinstance(node, Mapping) or not all(isinstance(name, str) for name in node):
            raise SpecError(
                f"{key} must be a _target_ and its arguments by name, or null; got {node!r:.80}"
            )
        check_node(node, kind, key, allow)
    for key, target in _targets(config, ""):
        if key.rpartition(".")[0] not in nodes:
            raise SpecError(
                f"{key}={target} may not be called: a _target_ belongs to model, optimizer, "
                "callbacks.NAME or logger.NAME itself, and not to an argument; take it out"
            )


def check_places(config: Mapping[str, Any], *, given: Sequence[str] = ()) -> None:
    """Refuse callbacks and loggers of a run folder that write or send elsewhere.

    A folder may be a stranger's.

    Args:
        config: plain values, as the folder has them.
        given: keys that the command line names itself.

    Raises:
        SpecError: an argument is a place for files, a text that leads to one, or an account.
    """
    nodes = {group: config.get(group) for group in ("callbacks", "logger")}
    for key, name, value in entries(nodes, ""):
        is_path = isinstance(value, str) and (value == ".." or "/" in value or "\\" in value)
        is_place = name in _PLACES | _ACCOUNTS and value is not None
        is_given = any(f"{key}.".startswith((f"{own}.", f"{own}[")) for own in given)
        if (is_path or is_place) and not is_given:
            what = "an account" if name in _ACCOUNTS else "a place for files"
            raise SpecError(
                f"{key}={value!r:.80} of the run folder is {what}; if it is yours, give it again "
                "on the command line"
            )


def check_node(node: Mapping[str, Any], kind: Kind, key: str, allow: Sequence[str] = ()) -> None:
    """Hold one node that is to be called against the table, as far as its names tell.

    Args:
        node: `_target_` and arguments, plain values.
        kind: of the node.
        key: of the node in the config, for messages.
        allow: as `check_targets`.

    Raises:
        SpecError: as `check_targets`.
    """
    target = node.get("_target_")
    if target is None:
        raise SpecError(f"{key} needs a _target_, the {ALLOWED[kind].title} that it stands for")
    if not is_named(target, kind, allow):
        raise SpecError(f"{key}._target_={target} may not be called; {told(kind, allow)}")
    for path, inner in _targets({k: v for k, v in node.items() if k != "_target_"}, key):
        raise SpecError(
            f"{path}={inner} may not be called: the arguments of {key} hold plain values only"
        )
    for path, name, _ in entries(node, key):
        if name.startswith("_") and name.endswith("_") and name not in _NODE_KEYS:
            raise SpecError(f"{path} is no option of a node; leave it out")
        if name in REFUSED_ARGUMENTS:
            raise SpecError(
                f"{path} may not be set: it makes {target} read what the config names; weights "
                "of a file are loaded by init_from=FILE"
            )


def is_named(target: object, kind: Kind, allow: Sequence[str] = ()) -> bool:
    """Whether a name may stand for something that the table allows; what it stands for is open."""
    if not isinstance(target, str):
        return False
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts) or len(parts) < 2:
        return False
    allowed = ALLOWED[kind]
    below = tuple(f"{module}." for module in allowed.modules)
    return target in allowed.names or target.startswith((*below, *allow))


def told(kind: Kind, allow: Sequence[str]) -> str:
    """What the table allows, and how a user allows more, for messages."""
    allowed = ALLOWED[kind]
    names = ", ".join([*allowed.names, *(f"{m}.NAME" for m in allowed.modules), *allow])
    return (
        f"a {allowed.title} is one of {names}; add a prefix of your own on the command line with "
        "allow_targets=[mypackage.]"
    )


def nodes_of(config: Mapping[str, Any]) -> Iterator[tuple[str, Kind]]:
    """Dotted keys of the nodes of a config that may be called, and their kinds."""
    yield "model", "model"
    yield "optimizer", "optimizer"
    if isinstance(distill := config.get("distill"), Mapping) and distill.get("teacher_model"):
        yield "distill.teacher_model", "model"
    groups: tuple[tuple[str, Kind], ...] = (("callbacks", "callback"), ("logger", "logger"))
    for group, kind in groups:
        named = config.get(group)
        for name, node in named.items() if isinstance(named, Mapping) else ():
            if node is not None:
                yield f"{group}.{name}", kind


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every `_target_` at any depth."""
    return ((key, child) for key, name, child in entries(node, path) if name == "_target_")
