"""Provenance: version, commit, machine, and a hash of the sources that enter the numbers."""

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent.parent
# rooms that look at finished runs, or start them, and cannot change a number of one
_OUTSIDE = (
    *("commands", "peers", "report", "sweep", "theory"),
    *("spec/sweep.py", "train/wandb_group.py"),
)
_CPUS = Path("/proc/cpuinfo")
_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "timm", "qat")
_adopted: list["CodeVersion"] = []  # of the process that started this one, at most one


@dataclass(frozen=True, slots=True)
class CodeVersion:
    """What is recorded of the code behind a run.

    Attributes:
        version: of the installed package, None for a checkout on the path.
        commit: git commit of the checkout, with "+" behind it if files were changed since; None
            outside of one.
        sources: first 12 hex digits of the SHA-256 of every source file that enters a run's
            numbers, paths included. Equal sources mean equal code, committed or not.
    """

    version: str | None
    commit: str | None
    sources: str


@cache
def code_version() -> CodeVersion:
    """The code that this process has; found once."""
    return _adopted[0] if _adopted else CodeVersion(_version(), _commit(), sources_hash())


def adopt(code: CodeVersion) -> None:
    """Say which code this process has, where it was imported before the process began."""
    _adopted[:] = [code]
    code_version.cache_clear()


def _version() -> str | None:
    try:
        return version("qat")
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = _PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--", "qat", "conf") else "")
    except (OSError, subprocess.SubprocessError):  # no git, or not our repository
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return answer.stdout.strip()


def sources_hash(*, also: str | None = None) -> str:
    """First 12 hex digits of the SHA-256 of the sources that enter a run's numbers.

    Args:
        also: a room that is left out otherwise.
    """
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE)
        places = {name.parts[0], name.as_posix()}
        if not places & set(_OUTSIDE) or name.parts[0] == also:
            digest.update(f"{name.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


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
