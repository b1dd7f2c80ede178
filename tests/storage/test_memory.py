"""Memory of a process: the smallest limit of its control groups and the machine, on made files."""

import sys

import pytest

from qat.storage import memory
from qat.storage.memory import group_limits, memory_limit

GIB = 2**30
UNLIMITED = 2**63 - 4096  # what version 1 writes


def made(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/job/step", {"job/step/memory.max": GIB, "job/memory.max": 2 * GIB}, {GIB, 2 * GIB}),
        ("0::/job/step", {"job/step/memory.max": "max", "job/memory.max": GIB}, {GIB}),
        ("0::/", {"memory.max": GIB}, {GIB}),  # a container with a name space of its own
        ("0::/docker/1f", {"memory.max": GIB}, {GIB}),  # one that sees the host's name
        ("0::/../../pod", {"memory.max": GIB, "pod/memory.max": 5}, {GIB}),
        (
            "9:name=systemd:/x\n4:cpu,memory:/docker/1f\n0::/",
            {"memory/docker/1f/memory.limit_in_bytes": GIB, "memory/x/memory.limit_in_bytes": 5},
            {GIB},
        ),
        (
            "4:memory:/docker/1f",
            {"memory/memory.limit_in_bytes": GIB, "memory.max": 5},
            {GIB},
        ),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": UNLIMITED}, {UNLIMITED}),
        ("0::/a:b", {"a:b/memory.max": GIB}, {GIB}),
        ("3:cpuset:/a", {"a/memory.max": 5, "memory/a/memory.limit_in_bytes": 5}, set()),
        ("0::/a", {"a/memory.max": "much"}, set()),
        ("", {"memory.max": 5}, set()),
        ("no line\n::\n", {"memory.max": GIB}, {GIB}),
    ],
)
def test_limits_are_those_of_the_groups_and_above_them(tmp_path, groups, files, limits):
    made(tmp_path, files)
    assert set(group_limits(groups, tmp_path)) == limits


@pytest.mark.parametrize(
    ("physical", "group", "least"),
    [(4 * GIB, GIB, GIB), (4 * GIB, UNLIMITED, 4 * GIB), (4 * GIB, "max", 4 * GIB)],
)
def test_the_smaller_of_machine_and_container_counts(tmp_path, monkeypatch, physical, group, least):
    made(tmp_path, {"memory.max": group, "groups": "0::/"})
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_MOUNT", tmp_path)
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": physical // 4096, "SC_PAGE_SIZE": 4096}.get)
    assert memory_limit() == least


def test_a_system_that_tells_nothing_sets_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "nothing")
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": -1, "SC_PAGE_SIZE": 4096}.get)
    assert memory_limit() == sys.maxsize
