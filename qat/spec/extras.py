"""Optional packages that only some commands need."""

from importlib.util import find_spec

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
