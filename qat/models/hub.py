"""Hugging Face's hub, from which timm fetches weights: asked once, when there is no network."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from qat.spec.model import first_line

_TRIES, _PAUSE = 2, 1.0  # and seconds between them


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """A block in which timm takes weights from its cache alone, if the hub cannot be reached.

    By itself the hub's library tries each of several files six times, which takes a minute and
    prints a line for each. Where the hub answers, nothing is changed.

    Raises:
        OSError: the weights are not cached, and why the hub cannot be reached.
    """
    from huggingface_hub import constants

    reason = "" if constants.HF_HUB_OFFLINE else _out_of_reach()
    if not reason:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        raise OSError(reason) from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _out_of_reach() -> str:
    """Why the hub cannot be reached, "" if it can; by its own client, behind the user's proxies."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
        get_session,
    )

    reason = ""
    for attempt in range(_TRIES):
        time.sleep(attempt * _PAUSE)
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception as error:  # of whichever client the library has
            reason = f"{constants.ENDPOINT} cannot be reached: {first_line(error)}"
        else:
            return ""
    return reason
