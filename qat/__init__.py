"""Train networks whose weights and activations live on a few levels.

The public names stand in `__init__.pyi`, which type checkers read too. Each is resolved at its
first use, so `import qat` loads nothing heavy.
"""

from typing import Any

from lazy_loader import attach_stub

_resolved, _, __all__ = attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("qat")
    if name in __all__:
        return _resolved(name)
    raise AttributeError(f"module 'qat' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
