"""A few processes at a time, one job each."""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from qat.status import mark
from qat.sweep.job import Job
from qat.sweep.worker import PRELOAD, work

_GRACE = 120.0  # seconds for jobs to save when the sweep is stopped


class _Running(NamedTuple):
    process: BaseProcess
    alive: Connection


class Pool:
    """Runs jobs in processes of their own: a crash, a kill or a leak in one is no other's matter.

    Use it as a context manager; leaving it stops the jobs that still run, after they have saved.

    Args:
        size: jobs at a time.
        group: name of the sweep.
    """

    def __init__(self, size: int, group: str) -> None:
        self.size = size
        self._group = group
        # forked from a server that has imported torch and never ran anything
        method = "spawn" if sys.platform == "win32" else "forkserver"
        # Any: the type of each method's context differs
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(list(PRELOAD))
        self._running: dict[Job, _Running] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for running in self._running.values():
            running.alive.close()
        deadline = time.monotonic() + _GRACE
        while self._running and time.monotonic() < deadline:
            list(self.ended(timeout=1.0))
        for running in self._running.values():
            running.process.kill()

    @property
    def running(self) -> list[Job]:
        """The jobs whose processes are there, in the order in which they were started."""
        return list(self._running)

    @property
    def has_room(self) -> bool:
        """Whether another job may be started."""
        return len(self._running) < self.size

    def start(self, job: Job) -> None:
        """Start or continue a job."""
        there, here = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=work, args=(job.run, str(job.folder), self._group, there), name=job.label
        )
        process.start()
        there.close()
        self._running[job] = _Running(process, here)

    def stop(self, job: Job) -> None:
        """Let one job save and stop; `ended` tells when it has."""
        self._running[job].alive.close()

    def ended(self, *, timeout: float) -> Iterator[Job]:
        """The jobs that have ended, after waiting for one at most `timeout` seconds.

        One that could not write its own end is marked as interrupted, or as failed.
        """
        wait([r.process.sentinel for r in self._running.values()], timeout)
        for job, running in list(self._running.items()):
            if running.process.exitcode is None:
                continue
            del self._running[job]
            running.alive.close()
            _settle(job, running.process.exitcode)
            yield job


def _settle(job: Job, exitcode: int) -> None:
    """Write the state of a job that ended without writing it."""
    if job.state in ("finished", "failed", "interrupted"):
        return
    if exitcode < 0:
        mark(job.folder, "interrupted", f"killed by signal {-exitcode}")
    else:
        mark(job.folder, "failed", f"ended with code {exitcode}; see {job.folder / 'train.log'}")
