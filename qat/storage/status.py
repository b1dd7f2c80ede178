"""Run status: RUN/status.json, what state a run is in, and its signed summary."""

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qat.errors import CheckpointError, LostProcessError, QatError, SpecError
from qat.storage.atomic import write_whole
from qat.storage.lock import only_process
from qat.storage.provenance import code_version, machine
from qat.storage.run_files import read_json

_BLOCK = 4096  # bytes
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Status:
    """RUN/status.json: the state, with error, metrics, config hash, code, threads, runtime, time.

    A run is waiting (for its teacher), running, finished, failed, interrupted or pruned (a search).

    Args:
        folder: run folder.
        config_hash: hash of the resolved config.
        writes: false in a process of the run that is not its first.

    Attributes:
        is_new: whether nothing was known of the run before.
        roll_backs: how often it has gone back to an earlier checkpoint, at half the rate each time.
        runtime: how the run's quantized layers are computed, by option of `runtime`; of a run that
            goes on, as it began.
    """

    def __init__(self, folder: Path, config_hash: str, *, writes: bool = True) -> None:
        self._writes = writes
        self._path = folder / "status.json"
        self.config_hash = config_hash
        self.code = asdict(code_version())
        self._start = time.monotonic()
        self._threads: int | None = None
        before = read_status(folder)
        self.is_new = not before
        self._earlier = _seconds(folder, before)
        threads = before.get("threads")
        self._threads = threads if isinstance(threads, int) else None
        self._processes = before.get("processes", 1)
        self.roll_backs = int(before.get("roll_backs", 0))
        self.runtime = _runtime(before)

    def begin(
        self,
        allow: Sequence[str],
        *,
        runtime: Mapping[str, str] | None = None,
        processes: int = 1,
    ) -> None:
        """Mark the run as running, after comparing the machine with an interrupted run's.

        Args:
            allow: what may differ.
            runtime: how quantized layers are computed now; nothing for a run without any.
            processes: that share its batches; of another number than before, sums differ anyway.

        Raises:
            SpecError: another number of threads or another runtime: the last bits of sums change.
        """
        import torch

        threads = torch.get_num_threads()
        is_as_many = processes == self._processes
        if is_as_many and self._threads not in (None, threads) and "threads" not in allow:
            raise SpecError(
                f"the run was trained with {self._threads} threads, now there are {threads}; set "
                f"training.threads={self._threads} when starting a run, OMP_NUM_THREADS="
                f"{self._threads} now, or resume_allow=[threads] for a run that is not exact"
            )
        runtime = runtime or {}
        for name, before in self.runtime.items():
            now = runtime.get(name, before)
            if now != before and f"runtime.{name}" not in allow:
                raise SpecError(
                    f"the run was trained with {name}={before}, now it is {now}; go on where "
                    f"runtime.{name}={before} is possible, or use resume_allow=[runtime.{name}] "
                    "for a run that is not exact"
                )
        self._threads, self.runtime = threads, dict(runtime)
        self._processes = processes
        self.write("running")

    def restart_clock(self) -> None:
        """Count from now; what came before was another run's time, the teacher's."""
        self._start = time.monotonic()

    def seconds(self) -> float:
        """Wall time of the run, interrupted parts included."""
        return self._earlier + time.monotonic() - self._start

    @contextmanager
    def recording_failures(self) -> Iterator[None]:
        """A block whose exceptions are written down and passed on."""
        try:
            yield
        except SystemExit as stop:
            self.write("interrupted", error=f"exit code {stop.code}")
            raise
        except KeyboardInterrupt:
            self.write("interrupted", error="Ctrl-C")
            raise
        except LostProcessError as error:
            self.write("interrupted", error=str(error))
            raise
        except (QatError, OSError) as error:
            self.write("failed", error=str(error))
            raise
        except BaseException as error:
            self.write("failed", error=f"{type(error).__name__}: {error}")
            raise

    def write(
        self, state: str, *, error: str | None = None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Replace the file; where that fails, on a full disk, overwrite it.

        Raises:
            OSError: a finished run cannot say so. Of a run that ends with an error of its own, a
                folder that cannot be written to is not worth a second one.
        """
        if not self._writes:
            return
        content = {
            "state": state,
            "error": error,
            "metrics": metrics,
            "config_hash": self.config_hash,
            "code": self.code,
            "seconds": self.seconds(),
            "threads": self._threads,
            "processes": self._processes,
            "roll_backs": self.roll_backs,
            "runtime": self.runtime,
        }
        with no_signals():
            try:
                write_whole(self._path, _padded(_json(content)))
            except OSError:
                if not _overwritten(self._path, _padded(_json(content))) and state == "finished":
                    raise

    def write_summary(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write RUN/summary.json, signed with the config, the code, the machine and the time."""
        signed = {
            **summary,
            "config_hash": self.config_hash,
            "code": self.code,
            "machine": machine(),
            "wall_seconds": self.seconds(),
        }
        write_whole(self._path.with_name("summary.json"), _json(signed))
        return signed

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as finished, with the scores of the states that it ends with."""
        metrics = {
            state: {k: v for k, v in summary[state].items() if isinstance(v, int | float)}
            for state in ("last", "selected")
            if state in summary
        }
        self.write("finished", metrics=metrics)


def read_status(folder: Path) -> dict[str, Any]:
    """The content of a run folder's status.json, empty if there is none to read."""
    with suppress(CheckpointError):
        return read_json(folder / "status.json")
    return {}


def state_of(folder: Path) -> str | None:
    """The state that a run folder's status.json tells, None if there is none to read."""
    state = read_status(folder).get("state")
    return None if state is None else str(state)


def is_finished(folder: Path, config_hash: str | None = None) -> bool:
    """Whether a run, of this config if one is given, has come to its end and left its numbers."""
    status = read_status(folder)
    return (
        status.get("state") == "finished"
        and config_hash in (None, status.get("config_hash"))
        and isinstance(status.get("metrics"), dict)
        and (folder / "summary.json").is_file()
    )


def validation_score(result: Mapping[str, Any]) -> float | None:
    """Validation accuracy of one state of a run, or agreement where no label was read."""
    score: float | None = result.get("val_acc", result.get("val_agreement"))
    return score


def mark(folder: Path, state: str, error: str, *, wait: float = 0.0) -> None:
    """Write down what became of a run that could not do so itself.

    Nothing is written of a run that has finished, or while a process is in the folder.

    Args:
        folder: run folder.
        state: of the run.
        error: why.
        wait: seconds for that process to leave.
    """
    with suppress(QatError, OSError), only_process(folder, wait=wait):
        before = read_status(folder)
        if not is_finished(folder):
            ended = {"state": state, "error": error, "seconds": _seconds(folder, before)}
            write_whole(folder / "status.json", _json(before | ended))


def runtime_of(folder: Path) -> dict[str, str]:
    """How a run's quantized layers were computed, by option of `runtime`; empty if none began."""
    return _runtime(read_status(folder))


def _runtime(status: Mapping[str, Any]) -> dict[str, str]:
    """How an interrupted run's quantized layers were computed; empty before it has begun."""
    found = status.get("runtime")
    if isinstance(found, dict):
        return {str(name): str(value) for name, value in found.items()}
    # of before there was a choice
    kernels = status.get("kernels", "eager" if isinstance(status.get("threads"), int) else None)
    return {} if kernels is None else {"kernels": str(kernels), "integer_forward": "off"}


def _seconds(folder: Path, status: Mapping[str, Any]) -> float:
    """Wall time that a run has used by its status; a killed one until its last line of metrics."""
    try:
        seconds = float(status.get("seconds", 0.0))
    except (TypeError, ValueError):
        return 0.0
    if status.get("state") == "running":
        with suppress(OSError):
            begun = (folder / "status.json").stat().st_mtime
            seconds += max(0.0, (folder / "metrics.csv").stat().st_mtime - begun)
    return seconds


@contextmanager
def no_signals() -> Iterator[None]:
    """A block that SIGTERM and SIGINT do not cut; they come behind it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # they reach the main thread only
        return
    # a mask would not do: any other thread of torch's takes the signal for the process
    pending: list[int] = []
    handlers = {s: signal.signal(s, lambda n, _: pending.append(n)) for s in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        if pending:
            signal.raise_signal(pending[0])


def _padded(text: str) -> bytes:
    """The text, filled up so that whatever comes later has room in the same blocks of a disk."""
    data = text.encode("utf-8", "replace")
    return data.ljust(-(-len(data) // _BLOCK) * _BLOCK - 1) + b"\n"


def _overwritten(path: Path, data: bytes) -> bool:
    """Write into the file that is there, which needs no new space; whether that was possible."""
    with suppress(OSError):
        if path.stat().st_size >= len(data):
            with path.open("r+b") as file:
                file.write(data)
                file.truncate()
            return True
    return False


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def is_run_folder(folder: Path) -> bool:
    """Whether a run has been started in this folder."""
    return (folder / ".hydra" / "config.yaml").is_file()
