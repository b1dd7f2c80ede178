"""Optional packages and sources of installed ones; none is imported."""

import ast
from importlib.util import find_spec
from pathlib import Path

from qat.errors import SpecError


def require_optuna() -> None:
    """Raise SpecError unless optuna is installed; does not import it."""
    if find_spec("optuna") is None:
        raise SpecError(
            "sweep.method=tpe needs optuna; install the extra: pip install 'qat[sweep]', in a "
            "checkout pip install -c constraints.txt -e '.[sweep]'; or take sweep.method=random"
        )


def require_onnx() -> None:
    """Raise SpecError unless onnx and onnxruntime are installed; imports neither."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise SpecError(
            f"ONNX files need {' and '.join(missing)}; install the extra: "
            "pip install 'qat[export]', in a checkout pip install -c constraints.txt -e '.[export]'"
        )


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
