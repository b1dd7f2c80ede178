"""Optional packages and sources of installed ones; none is imported."""

import ast
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qat.errors import SpecError
from qat.spec.keys import at


def require_optuna() -> None:
    """Raise SpecError unless optuna is installed; does not import it."""
    if find_spec("optuna") is None:
        raise SpecError(
            "sweep.method=tpe needs optuna; install the extra: pip install 'qat[sweep]', in a "
            "checkout pip install -c constraints.txt -e '.[sweep]'; or take sweep.method=random"
        )


def require_onnx() -> None:
    """Raise SpecError unless onnx and onnxruntime are installed; imports neither."""
    _require_export("ONNX files need", "onnx", "onnxruntime")


def require_onnxscript() -> None:
    """Raise SpecError unless onnxscript is installed, too, by which PyTorch exports; no import."""
    _require_export("the general ONNX form needs", "onnx", "onnxruntime", "onnxscript")


def _require_export(what: str, *packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise SpecError(
            f"{what} {' and '.join(missing)}; install the extra: "
            "pip install 'qat[export]', in a checkout pip install -c constraints.txt -e '.[export]'"
        )


def require_images(name: str, package: str) -> None:
    """Raise SpecError unless the package that has the images of a data set is installed; no import.

    Args:
        name: of the data set, and of the extra.
        package: the images come with it.
    """
    if find_spec(package) is None:
        raise SpecError(
            f"data={name} needs {package}; install the extra: pip install 'qat[{name}]', in a "
            f"checkout pip install -c constraints.txt -e '.[{name}]'"
        )


# logger of Lightning -> packages of which one must be there, and the extra that has it; loggers
# that are not ours to install have none
_LOGGERS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "TensorBoardLogger": (("tensorboard", "tensorboardX"), "tensorboard"),
    "WandbLogger": (("wandb",), None),
    "MLFlowLogger": (("mlflow",), None),
    "CometLogger": (("comet_ml",), None),
    "LitLogger": (("litlogger",), None),
}


def require_loggers(loggers: Mapping[str, Any]) -> None:
    """Raise SpecError unless the package behind each logger is installed; imports none.

    Args:
        loggers: the config group `logger`, plain values.
    """
    for name, node in loggers.items():
        module, _, target = str(at(node, "_target_", "")).rpartition(".")
        packages, extra = _LOGGERS.get(target, ((), None))
        if not module.startswith("lightning.") or not packages or any(map(find_spec, packages)):
            continue
        cure = f"install it: pip install {packages[0].replace('_', '-')}"
        if extra is not None:
            cure = (
                f"install the extra: pip install 'qat[{extra}]', in a checkout "
                f"pip install -c constraints.txt -e '.[{extra}]'"
            )
        raise SpecError(f"logger.{name}={target} needs {packages[0]}; {cure}; or leave it out")


def parsed_source(package: str, file: str) -> ast.Module | None:
    """Syntax tree of a file of an installed package; None if there is no such file.

    Args:
        package: top level.
        file: below the package's folder.
    """
    found = find_spec(package)
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder, file)
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    return None
