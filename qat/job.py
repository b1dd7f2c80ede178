"""One run in its folder: the teacher if there is to be one, training, summary.json, status.json."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qat.errors import CheckpointError
from qat.folder_lock import only_process
from qat.lit.checkpoint_file import checkpoints_by_step
from qat.preflight import config_hash
from qat.run_spec import RunSpec
from qat.status import Status, is_finished, validation_score


def run_job(config: Mapping[str, Any], spec: RunSpec, folder: Path) -> float:
    """Train the run that `config` describes, or print its audit if that is all it asks for.

    Args:
        config: resolved, plain values.
        spec: the same, checked.
        folder: run folder; an interrupted run in it is continued.

    Returns:
        The validation score of the selected epoch, or of the last one if none is selected; 0 for an
        audit.

    Raises:
        QatError: see `qat.lit.run.train`; status.json has the message. Or a finished run is to go
            on and has lost the checkpoint of its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder):
        if spec.resume is not None:
            _check_goes_on(folder)
        status = Status(folder, config_hash(config))
        with status.recording_failures():
            summary = _run(config, spec, folder, status)
        if summary is None:
            return 0.0
        # the run is finished, whether or not anyone reads this
        print(_result_lines(summary, folder), flush=True)
    score = validation_score(summary.get("selected") or summary["last"])
    assert score is not None  # every run validates
    return score


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
    from qat.audit_table import audit_table
    from qat.lit.built import audit_untrained, build
    from qat.lit.run import train
    from qat.lit.signals import Signals
    from qat.report.run_page import write_run_report

    parts = _parts(config, spec, folder)
    if spec.distill is not None and not spec.audit_only:
        status.write("waiting")
        # before our own signal handling: the teacher's run brings its own
        parts = replace(parts, teacher=_teacher(config, spec, parts))
        status.restart_clock()
    with Signals() as signals:
        built = build(spec, parts)
        if spec.audit_only:
            print(audit_table(audit_untrained(built, spec)))
            return None
        status.begin(spec.resume_allow)
        for logger in parts.loggers:
            logger.log_hyperparams(dict(config))
        if not sys.stderr.isatty():
            spec = replace(spec, trainer={**spec.trainer, "enable_progress_bar": False})
        print(f"run folder: {folder}", flush=True)
        summary, found = train(built, spec, parts, folder, signals=signals)
    print("\n" + audit_table(found) + "\n")
    summary = status.write_summary(summary)
    write_run_report(folder)
    status.finish(summary)
    return summary


def _parts(config: Mapping[str, Any], spec: RunSpec, folder: Path) -> Any:
    """Resolve every `_target_` of the config."""
    from qat.compose import instantiated
    from qat.lit.built import Parts

    allow = tuple(config.get("allow_targets", ()))
    return Parts(
        model=lambda **shape: instantiated(config["model"], "model", allow=allow, **shape),
        optimizer=instantiated(config["optimizer"], "optimizer", allow=allow),
        # callbacks.NAME=null leaves one out
        callbacks=[
            instantiated(node, "callback", allow=allow, key=f"callbacks.{name}")
            for name, node in config["callbacks"].items()
            if node
        ],
        loggers=[
            instantiated(node, "logger", allow=allow, key=f"logger.{name}", save_dir=str(folder))
            for name, node in config["logger"].items()
            if node
        ],
    )


def _teacher(config: Mapping[str, Any], spec: RunSpec, parts: Any) -> Any:
    """Where the student's run gets its teacher from; trains one if there is none."""
    from qat.lit.built import build
    from qat.lit.run import recorded_teacher
    from qat.teacher_source import load_teacher, untrained_teacher
    from qat.teacher_training import ensure_teacher

    assert spec.distill is not None  # asked only then
    allow = tuple(config.get("allow_targets", ()))

    def untrained(data: Any) -> Any:
        return untrained_teacher(spec, data, allow_targets=allow)

    def rehearse() -> None:
        """Build the student with a teacher that has learned nothing: mistakes cost seconds."""
        build(spec, replace(parts, teacher=lambda data: (untrained(data), "new")))

    source = spec.distill.teacher or (spec.resume and recorded_teacher(Path(spec.resume)))
    if not source:
        source = str(ensure_teacher(config, spec, rehearse=rehearse, train=run_job))
    return lambda data: load_teacher(source, spec, data, allow_targets=allow)


def _result_lines(summary: Mapping[str, Any], folder: Path) -> str:
    names = {"val_acc": "val", "val_agreement": "val agreement", "test_acc": "test"}
    lines = []
    for state in ("warm_start", "last", "selected"):
        if state in summary:
            r = summary[state]
            shown = [f"{title} {r[key]:.4f}" for key, title in names.items() if key in r]
            epoch = [f"(epoch {r['epoch']})"] if "epoch" in r else []
            lines.append("  ".join([f"{state:10}", *shown, *epoch]))
    if "teacher" in summary:
        teacher = summary["teacher"]
        lines.append(f"{'teacher':10}  test {teacher['test_acc']:.4f}  {teacher['origin']}")
    lines.append(rule_line(summary["rule"]))
    return "\n".join([*lines, f"{summary['wall_seconds']:.0f} s; {folder / 'summary.json'}"])


def rule_line(rule: Mapping[str, Any]) -> str:
    """What the update rule's numbers amounted to in this run, in plain words."""
    if rule["method"] != "update":
        return (
            f"weights by {rule['method']}, in the graph: {rule['quantized_steps']} quantized steps"
        )
    numbers = ", ".join(f"{k}={v:g}" for k, v in rule["numbers"].items())
    text = f"rule {rule['name']}({numbers}): {rule['quantized_steps']} quantized steps"
    if rule["name"] == "bcgd":
        text += (
            f"; blending alone pulled latent weights {100 * rule['pull']:.2g} % of the way to the "
            "grid, the gradient steps at hard weights did the rest"
        )
    if rule["name"] == "binary_relax":
        text += f", relaxed for {rule['relaxed_steps']} of them, then hard"
    return text
