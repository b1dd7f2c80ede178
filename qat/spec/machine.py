"""Machine check: what a run asks of this machine, its packages and its folders; no torch."""

import ast
import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qat.errors import SpecError
from qat.spec.extras import parsed_source, require_loggers
from qat.spec.keys import at
from qat.spec.timm_names import check_timm_name

TIMM = "qat.models.timm_model.timm_model"
# of NVIDIA's driver, which PyTorch loads, too
_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}


def check_machine(config: Mapping[str, Any]) -> None:
    """Check what a run's config asks of this machine, as far as is possible without torch.

    Not for runs that a launcher sends to other machines: these answer for themselves.

    Args:
        config: resolved, plain values.

    Raises:
        SpecError: no such accelerator can be here, a logger's package is not installed, the
            installed timm has no such network, or a folder to begin with is none of a run.
    """
    accelerator = config["trainer"].get("accelerator")
    if accelerator in ("gpu", "cuda") and (why := _no_cuda()):
        raise no_accelerator(accelerator, why)
    require_loggers(config["logger"])
    _check_folders(config)
    if not config.get("allow_targets"):  # whose modules may register more
        _check_timm_names(config)


def _check_folders(config: Mapping[str, Any]) -> None:
    """Refuse folders that a run would begin with and that hold none; a finished run needs none."""
    start = at(config, "init_from")
    if start and Path(start).is_dir() and not any(Path(start).glob("checkpoints/*/*.ckpt")):
        raise SpecError(
            f"init_from={start} holds no checkpoint; give a run folder or a file (sweep.keep=none "
            "leaves a run without one)"
        )
    teacher = at(config, "distill.teacher")
    if teacher and Path(teacher).is_dir() and not Path(teacher, ".hydra", "config.yaml").exists():
        raise SpecError(
            f"distill.teacher={teacher} is no run folder: .hydra/config.yaml is not in it; give "
            "runs/DATE/TIME"
        )


def _check_timm_names(config: Mapping[str, Any]) -> None:
    for key in ("model", "distill.teacher_model"):
        if at(config, f"{key}._target_") == TIMM:
            name = at(config, f"{key}.name")
            check_timm_name(name, f"{key}.name must be a model of timm, got {name!r}")
    library, _, name = str(at(config, "distill.teacher")).partition("/")
    if library == "timm":
        check_timm_name(name, f"distill.teacher=timm/{name} is no network of timm")


def no_accelerator(name: str, why: str) -> SpecError:
    """The error for an accelerator that is not here."""
    return SpecError(
        f"trainer.accelerator={name} is not on this machine ({why}); use "
        "trainer.accelerator=auto, which takes a GPU where PyTorch sees one, or cpu"
    )


def _no_cuda() -> str:
    """Why no GPU of NVIDIA can be found; "" where only PyTorch itself can tell."""
    driver, builds = _DRIVERS.get(sys.platform), _builds()
    if driver is None or builds is None or builds["hip"]:
        return ""
    if not builds["cuda"]:
        return "this PyTorch is built for CPUs only"
    try:
        ctypes.CDLL(driver)
    except OSError:
        return f"NVIDIA's driver, {driver}, is not installed"
    return ""


def _builds() -> dict[str, Any] | None:
    """Versions of CUDA and HIP that the installed PyTorch is built for, read from its source."""
    source = parsed_source("torch", "version.py")
    found = {
        node.target.id: ast.literal_eval(node.value)
        for node in (source.body if source else ())
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
    }
    return found if {"cuda", "hip"} <= found.keys() else None
