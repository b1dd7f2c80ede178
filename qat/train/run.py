"""Run in its folder: the teacher if there is to be one, training, summary.json, status.json."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from qat.errors import CheckpointError, LostProcessError, NonFiniteError, QatError, shown
from qat.ranks import group as ranks
from qat.spec.check import config_hash
from qat.spec.run import RunSpec
from qat.storage.atomic import discard_parts
from qat.storage.checkpoint import checkpoints_by_step
from qat.storage.data_record import write_record
from qat.storage.lock import only_process
from qat.storage.status import Status, is_finished, validation_score
from qat.train.wandb_id import continued

_RATE = 0.5  # of the learning rate after each return to an earlier checkpoint


def run_job(config: Mapping[str, Any], spec: RunSpec, folder: Path) -> float:
    """Train the run that `config` describes, or print its audit if that is all it asks for.

    Of several processes all call it, and the first writes the files.

    Args:
        config: resolved, plain values.
        spec: the same, checked.
        folder: run folder; an interrupted run in it is continued.

    Returns:
        The validation score of the selected epoch, or of the last one if none is selected; 0 for an
        audit.

    Raises:
        QatError: see `qat.train.fit.train`; status.json has the message. Or a finished run is to go
            on and has lost the checkpoint of its end.
    """
    from qat.train.summary import result_lines

    with _held(folder, spec):
        if spec.resume is not None:
            _check_goes_on(folder)
        status = Status(folder, config_hash(config), writes=ranks.is_first())
        known = ranks.from_first((status.is_new, status.roll_backs))
        status.is_new, status.roll_backs = known
        with status.recording_failures(), _telling_failures(folder, spec):
            summary = _run(config, spec, folder, status)
        if summary is None:
            return 0.0
        # the run is finished, whether or not anyone reads this
        if ranks.is_first():
            print(result_lines(summary, folder), flush=True)
    score = validation_score(summary.get("selected") or summary["last"])
    assert score is not None  # every run validates
    return score


@contextmanager
def _held(folder: Path, spec: RunSpec) -> Iterator[None]:
    """A block in which the folder is this run's alone; its first process holds it for all."""
    if not ranks.is_first():
        with _telling_failures(folder, spec):
            ranks.wait()
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder):
        discard_parts(folder)
        ranks.wait()
        yield


@contextmanager
def _telling_failures(folder: Path, spec: RunSpec) -> Iterator[None]:
    """A block in which memory may be full, or other processes end, with one line for each."""
    from qat.train.explained import explained

    try:
        yield
    except QatError as error:
        ranks.leave_word(error)
        raise
    except (RuntimeError, MemoryError) as error:
        if (told := explained(error, spec)) is not None:
            ranks.leave_word(told)
            raise told from error
        if not ranks.is_loss(error):
            raise
        if (word := ranks.word()) is not None:
            raise word from error
        raise LostProcessError(
            f"another process of the run has ended; resume={folder} goes on from its last "
            "checkpoint"
        ) from error


def _check_goes_on(folder: Path) -> None:
    """Refuse to train beyond the end of a run whose end is gone: it would begin anew."""
    if is_finished(folder) and not checkpoints_by_step(folder / "checkpoints" / "last"):
        raise CheckpointError(
            f"resume={folder} is finished, and the checkpoint of its last epoch is gone "
            "(sweep.keep thins finished runs); begin a new run, with init_from=RUN from its weights"
        )


def _run(
    config: Mapping[str, Any], spec: RunSpec, folder: Path, status: Status
) -> dict[str, Any] | None:
    """The run's summary; None if only its audit was asked for."""
    from qat.export.outlook import export_outlook
    from qat.lit.resume.selection import keep_only
    from qat.lit.resume.signals import Signals
    from qat.quantize.audit_table import audit_table
    from qat.report.page.run_page import write_run_report
    from qat.train.build import audit_untrained, build
    from qat.train.run_data import data_of_run, has_begun
    from qat.train.runtime import begin_runtime
    from qat.train.teacher import teacher_of

    if status.is_new and ranks.size() > 1:
        spec = replace(spec, resume=None)  # its processes were given a folder that is there
    parts = _parts(config, spec, folder)
    if spec.distill is not None and not spec.audit_only:
        status.write("waiting")
        # before our own signal handling: the teacher's run brings its own
        teacher = teacher_of(config, spec, parts, train=run_job)
        parts = replace(parts, teacher=teacher)
        status.restart_clock()
    with Signals() as signals:
        data = data_of_run(spec, folder)
        print(*(f"data: {line}" for line in data.examined()), sep="\n", flush=True)
        built = build(spec, parts, data)
        exports = export_outlook(built.net, built.plan, built.example, is_tried=spec.audit_only)
        if spec.audit_only:
            print(audit_table(audit_untrained(built)), *exports.lines(), sep="\nexport: ")
            return None
        chosen = begin_runtime(spec, built, before=status.runtime)
        status.begin(spec.resume_allow, runtime=chosen.values(), processes=ranks.size())
        for logger in parts.loggers:
            logger.log_hyperparams(dict(config))
        if not sys.stderr.isatty():
            spec = replace(spec, trainer={**spec.trainer, "enable_progress_bar": False})
        print(f"export: {exports}", *chosen.lines(), sep="\n")
        print(f"run folder: {shown(folder)}", flush=True)
        if ranks.is_first() and not has_begun(folder):
            write_record(folder, built.data.record())

        summary, found = _trained(built, parts, config, spec, folder, status, signals)
        if found is None:  # the first process does what is left
            return summary
        print(f"\n{audit_table(found)}\nexport: {exports}\n")
        summary = status.write_summary(summary | {"export": str(exports)})
        write_run_report(folder)
        # it has just been read whole, to be tested; should the run go on, then from there
        with suppress(OSError):
            keep_only(folder / "checkpoints" / "last", [summary["last"]["global_step"]])
        status.finish(summary)
    return summary


def _trained(
    built: Any,
    parts: Any,
    config: Mapping[str, Any],
    spec: RunSpec,
    folder: Path,
    status: Status,
    signals: Any,
) -> tuple[dict[str, Any], Any]:
    """What `train` gives, from the last checkpoint on again where it met no number."""
    from qat.train.build import build
    from qat.train.fit import train

    while True:
        built.lit.rate_factor = _RATE**status.roll_backs
        try:
            return train(built, spec, parts, folder, signals=signals)
        except NonFiniteError as error:
            _roll_back(error, spec, status)
        signals.stop_if_asked()
        # what has trained is used up: weights, and callbacks with what they remember
        parts = replace(_parts(config, spec, folder), teacher=parts.teacher)
        built = build(spec, parts, built.data)


def _roll_back(error: NonFiniteError, spec: RunSpec, status: Status) -> None:
    """Count one more return to the last checkpoint; raises the error where none is left."""
    most = spec.training.roll_backs
    if spec.training.non_finite != "roll_back" or status.roll_backs >= most:
        raise error
    status.roll_backs += 1
    status.write("running")
    print(
        f"roll back {status.roll_backs} of {most}: {str(error).partition(';')[0]}; the run goes on "
        "from its last checkpoint, if there is one, at half the learning rate",
        flush=True,
    )


def _parts(config: Mapping[str, Any], spec: RunSpec, folder: Path) -> Any:
    """Resolve every `_target_` of the config."""
    from qat.train.build import Parts
    from qat.train.targets import build_network, instantiated

    allow = tuple(config.get("allow_targets", ()))
    return Parts(
        model=lambda data: build_network(config["model"], data, allow=allow),
        optimizer=instantiated(config["optimizer"], "optimizer", allow=allow),
        # callbacks.NAME=null leaves one out
        callbacks=[
            instantiated(node, "callback", allow=allow, key=f"callbacks.{name}")
            for name, node in config["callbacks"].items()
            if node
        ],
        loggers=[
            _logger(name, node, folder, allow) for name, node in config["logger"].items() if node
        ],
    )


def _logger(name: str, node: Mapping[str, Any], folder: Path, allow: tuple[str, ...]) -> Any:
    from qat.train.targets import instantiated

    own = {"save_dir": str(folder), **continued(node, folder)}
    return instantiated(node, "logger", allow=allow, key=f"logger.{name}", **own)
