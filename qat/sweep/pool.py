"""Process pool: a few at a time, one job each."""

import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from qat.errors import QatError
from qat.storage.lock import only_process
from qat.storage.provenance import code_version, sources_hash
from qat.storage.status import mark, read_status
from qat.sweep.job import Job
from qat.sweep.worker import EXIT_BUSY, SAVING, process_context, work

_LOOK = 1.0  # seconds between two looks at the running jobs
_TRIES, _PAUSE = 3, 0.5  # tries to start a process, and seconds after the first
_LOST = 255  # exit code of a job whose fork server is gone
LEAVING = 10.0  # seconds in which the loader processes of an ended job notice, and leave its folder


class _Running(NamedTuple):
    process: BaseProcess
    alive: Connection
    before: dict[str, Any]  # its status.json when it was started


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
        self._code = code_version()
        self._context = process_context()
        self._running: dict[Job, _Running] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for running in self._running.values():
            running.alive.close()
        deadline = time.monotonic() + SAVING
        while self._running and time.monotonic() < deadline:
            list(self.ended())
        for running in self._running.values():
            running.process.kill()
            running.process.join()
        list(self.ended())

    @property
    def running(self) -> list[Job]:
        """The jobs whose processes are there, in the order in which they were started."""
        return list(self._running)

    @property
    def has_room(self) -> bool:
        """Whether another job may be started."""
        return len(self._running) < self.size

    def start(self, job: Job) -> None:
        """Start or continue a job.

        Raises:
            QatError: the sources have changed, or no process can be made.
        """
        if sources_hash() != self._code.sources:
            raise QatError(
                "the sources have changed while the sweep ran; jobs of mixed code are worth "
                "nothing, give the command again"
            )
        for attempt in range(_TRIES):
            before = read_status(job.folder)
            there, here = self._context.Pipe(duplex=False)
            process = self._context.Process(
                target=work,
                args=(job.run, str(job.folder), self._group, self._code, there),
                name=job.label,
            )
            try:
                process.start()
            except (EOFError, OSError):  # the fork server was killed; the next try makes another
                here.close()
                time.sleep(_PAUSE * (attempt + 1))
            else:
                self._running[job] = _Running(process, here, before)
                return
            finally:
                there.close()
        raise QatError("no process can be started: its server ends at once; is the package whole?")

    def stop(self, job: Job) -> None:
        """Let one job save and stop; `ended` tells when it has."""
        self._running[job].alive.close()

    def ended(self) -> Iterator[Job]:
        """The jobs that have ended, after waiting a second for one.

        One that could not write its own end is marked as interrupted, or as failed.
        """
        wait([r.process.sentinel for r in self._running.values()], _LOOK)
        for job, running in list(self._running.items()):
            if running.process.exitcode is None:
                continue
            del self._running[job]
            running.alive.close()
            _settle(job, running.process.exitcode, running.before)
            yield job


def _settle(job: Job, exitcode: int, before: dict[str, Any]) -> None:
    """Write the state of a job that ended without writing it."""
    if exitcode == EXIT_BUSY:  # its folder is another process's, and so is its state
        return
    if exitcode == _LOST:  # it still saves
        with suppress(QatError, OSError), only_process(job.folder, wait=SAVING):
            pass
    has_written = read_status(job.folder) != before  # else it is the end of an earlier start
    if job.state == "finished" or (has_written and job.state in ("failed", "interrupted")):
        return
    if exitcode == _LOST:
        state, error = "interrupted", "the server of its process was killed"
    elif exitcode < 0:
        state, error = "interrupted", f"killed by signal {-exitcode}"
    else:
        state, error = "failed", f"ended with code {exitcode}; see {job.folder / 'train.log'}"
    mark(job.folder, state, error, wait=LEAVING)
