"""Helpers of the tests: `from support.NAME import ...`."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**more):
    """The environment of a process that imports this checkout's `qat`, and these helpers."""
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))} | more
