"""Text files that are whole or not there."""

from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Let `path` hold the text, or what it held before: a kill leaves no half of it.

    For one writer at a time.

    Raises:
        OSError: it cannot be written; nothing is left beside it then.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
