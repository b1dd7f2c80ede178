"""The machine that a run is on, and the packages, in words; standard library only."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_CPUS = Path("/proc/cpuinfo")
_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "timm", "qat")


def machine() -> dict[str, Any]:
    """Processor and number of its cores that this process may use, and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, "system": platform.system()}


def _processor() -> str:
    """The model's name where Linux tells it, which `platform` does not."""
    if _CPUS.is_file():
        for line in _CPUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Version of Python and of each installed package that may change a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):  # a checkout on the path is not installed
            found[package] = version(package)
    return found
