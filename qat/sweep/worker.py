"""Worker process of one job: its own log, and an end with the sweep that started it."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from qat.compose import Composed, record
from qat.errors import QatError, one_line
from qat.spec.check import config_hash
from qat.storage.lock import only_process
from qat.storage.provenance import CodeVersion, adopt
from qat.storage.status import is_finished
from qat.train.wandb_group import close_wandb, group_run

EXIT_FAILED, EXIT_BUSY = 1, 75
# what importing takes most of a job's start; a fork server that has it starts jobs at once
PRELOAD = (
    "qat.sweep.worker",
    "qat.train.fit",
    "qat.quantize.audit_table",
    "timm",
    "sklearn.datasets",
)
SAVING = 120.0  # seconds that a job may need to save when its sweep is stopped or killed


def process_context() -> Any:
    """What makes the processes of a sweep; Any, as the type of each method's context differs."""
    # forked from a server that has imported torch and never ran anything
    method = "spawn" if sys.platform == "win32" else "forkserver"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(list(PRELOAD))
    return context


def work(run: Composed, folder: str, sweep: str, code: CodeVersion, alive: Connection) -> None:
    """Run or continue one job; ends the process.

    Args:
        run: of the job.
        folder: its run folder; what would be printed goes to FOLDER/train.log.
        sweep: its name.
        code: of the process that this one was forked from.
        alive: from the sweep; closed when that ends, however it ends, and the job saves and stops.
    """
    adopt(code)
    group_run(run.overrides, sweep)
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is the sweep's matter, which passes it on once
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    _redirect(path / "train.log")
    threading.Thread(target=_stop_with, args=(alive,), daemon=True).start()
    sys.exit(_run(run, path))


def _run(run: Composed, folder: Path) -> int:
    from qat.launch.start import start_run

    try:
        with only_process(folder, wait=SAVING):
            pass  # an orphan of a killed sweep has left
    except QatError as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        return EXIT_BUSY
    if is_finished(folder, config_hash(run.config)):  # by that orphan
        return 0
    try:
        record(folder, run.overrides, run.config)
        return start_run(run.config, run.spec, folder)
    except QatError as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    finally:
        close_wandb()


def _redirect(log: Path) -> None:
    """Let everything that this process prints go to a file, also what libraries in C print."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _stop_with(alive: Connection) -> None:
    """Ask this process to save and stop once the other end is closed."""
    try:
        alive.recv_bytes()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
