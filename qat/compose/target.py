"""Call what a config names by `_target_`."""

from collections.abc import Mapping
from typing import Any

from qat.errors import QatError, SpecError


def instantiated(node: Mapping[str, Any], **extra: Any) -> Any:
    """Call the `_target_` of a config node; its own errors come out as one line.

    Raises:
        SpecError: the call fails; QatErrors of the callee pass as they are.
    """
    from hydra.utils import instantiate

    try:
        return instantiate(node, **extra)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, QatError):
            raise cause from None
        raise SpecError(f"{node['_target_']}: {str(cause).splitlines()[0]}") from error
