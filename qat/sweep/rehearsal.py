"""Rehearsal of a sweep: what is wrong with its jobs is told before it has a folder."""

import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection

from qat.compose import Composed
from qat.errors import QatError, SpecError
from qat.spec.machine import check_machine
from qat.storage.reading import reason_of
from qat.sweep.worker import process_context


def rehearse(runs: Sequence[Composed]) -> None:
    """Check runs as each one's own command would, those that need PyTorch in another process.

    Args:
        runs: of the jobs that are to be started.

    Raises:
        SpecError: the first thing that is wrong with one.
    """
    for run in runs:
        check_machine(run.config)
    if not runs:
        return
    context = process_context()
    here, there = context.Pipe(duplex=False)
    # from the server that the jobs come from, which has imported PyTorch
    process = context.Process(target=_answer, args=(tuple(runs), there), daemon=True)
    try:
        process.start()
        there.close()
        error = here.recv()
        process.join()
    except (EOFError, OSError):  # it was killed; what is wrong is told by each job
        return
    if error:
        raise SpecError(error)


def _answer(runs: Sequence[Composed], answer: Connection) -> None:
    """Send the first error of the runs, "" if there is none."""
    from qat.train.preflight import preflight

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's matter
    try:
        for run in runs:
            preflight(run.config, run.spec)
    except QatError as error:
        answer.send(str(error))
    except Exception as error:  # of the user's own modules, say
        answer.send(reason_of(error))
    else:
        answer.send("")
