"""How much memory there is for a process: the machine's, less where a container allows less."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def memory_limit() -> int:
    """Bytes that this process may have; sys.maxsize where nobody tells."""
    try:
        groups = _GROUPS.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        groups = ""
    return min([_physical(), *group_limits(groups, _MOUNT)])


def group_limits(groups: str, mount: Path) -> list[int]:
    """Limits of the memory of a process's control groups, and of those above them, in bytes.

    A container may see the name of its group as its host does, and the group itself as the root.

    Args:
        groups: text of /proc/PID/cgroup: lines ID:CONTROLLERS:PATH, without controllers those of
            version 2.
        mount: where control groups are mounted.
    """
    return [limit for file in _files(groups, mount) if (limit := _number(file)) is not None]


def _files(groups: str, mount: Path) -> Iterator[Path]:
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        path = PurePosixPath(name.lstrip("/"))
        # a group outside of what is seen here; what is seen is below it
        own = [path, *path.parents] if ".." not in path.parts else [PurePosixPath()]
        if not controllers:
            yield from (mount / place / "memory.max" for place in own)
        elif "memory" in controllers.split(","):
            yield from (mount / "memory" / place / "memory.limit_in_bytes" for place in own)


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, or the word max."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _physical() -> int:
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not told here
        return sys.maxsize
    return size if size > 0 else sys.maxsize
