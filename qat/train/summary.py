"""Run summary: its saved states judged, the audit, the rule in numbers."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from qat.data.loader import limited
from qat.data.module import ImageData
from qat.errors import shown
from qat.lit.distiller import LitDistiller
from qat.lit.measure.diagnostics import Diagnostics
from qat.lit.processes import trainer_options
from qat.lit.resume.run_checkpoint import RunCheckpoint
from qat.quantize.audit import Audit, audit
from qat.quantize.prepare import enable_quantizers
from qat.ranks import group as ranks
from qat.spec.run import RunSpec
from qat.storage.checkpoint import (
    last_good,
    load,
)
from qat.storage.provenance import versions
from qat.train.build import Built
from qat.train.weights import restore


def summarized(
    built: Built, spec: RunSpec, trainer: L.Trainer, keeper: RunCheckpoint, checkpoints: Path
) -> tuple[dict[str, Any], Audit | None]:
    """Judge the warm start, the last and the selected epoch on validation and test, and audit.

    Args:
        built: that was trained; its network is the selected one afterwards, on the CPU.
        spec: the run's options.
        trainer: that has fitted it.
        keeper: its checkpoints.
        checkpoints: RUN/checkpoints.

    Returns:
        (content of summary.json without times and signature, audit of the selected network); of a
        process that is not the first, what was judged and None.

    Raises:
        QatError: a checkpoint is damaged, or a value is off the grid.
    """
    last = last_good(checkpoints / "last")
    assert last is not None  # on_train_end has saved it
    states = {"last": last}
    if keeper.best_path is not None:
        states["selected"] = keeper.best_path
    if (checkpoints / "warm_start.ckpt").exists():
        states["warm_start"] = checkpoints / "warm_start.ckpt"
    results = {name: _judged(name, path, built, spec) for name, path in states.items()}
    if not ranks.is_first():
        return results, None
    # the audit speaks of the network that a user would take home
    restore(built.net, built.plan, load(states.get("selected", last)))
    enable_quantizers(built.net, True)
    if isinstance(built.lit, LitDistiller):
        results["teacher"] = _teacher(built.lit, results)
    found = audit(built.net.cpu(), built.plan, built.example)
    totals = {k: v for k, v in found.to_dict().items() if k not in ("layers", "other")}
    summary = {
        **results,
        **totals,
        "rule": _rule(spec, trainer.global_step - built.lit.warm_steps),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "seed": spec.seed,
        "threads": torch.get_num_threads(),
        "processes": ranks.size(),
        "device": _device(trainer),
        "versions": versions(),
        "audit": found.to_dict()["layers"],
        "classes": list(built.data.classes),
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Diagnostics):
            summary["occupancy"] = list(callback.occupancy)
    return summary, found


def limits(data: ImageData, spec: RunSpec) -> dict[str, Any]:
    """Batches of validation and test that a trainer takes, told as numbers.

    A share would be one of each process's own number, which the last batch makes differ.

    Args:
        data: of the run.
        spec: the run's options.
    """
    parts = {"limit_val_batches": data.parts.validation, "limit_test_batches": data.parts.test}
    return {
        name: limited(data.batches_of(images), spec.trainer.get(name))
        for name, images in parts.items()
    }


def judged_batches(data: ImageData, spec: RunSpec) -> int:
    """Batches of validation and test by which each saved state of a run is judged.

    Args:
        data: of the run.
        spec: the run's options.

    Raises:
        DataError: as `data.parts`.
    """
    return sum(limits(data, spec).values())


def _teacher(lit: LitDistiller, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What is recorded of the teacher; its accuracy moves out of the results of the student."""
    accuracies = [result.pop("test_acc_teacher") for result in results.values()]
    return {
        "origin": lit.teacher.origin,
        "sha256": lit.teacher.sha256,
        "test_acc": accuracies[0],
        "layers": {"student": list(lit.layers), "teacher": list(lit.teacher.layers)},
    }


def _judged(name: str, path: Path, built: Built, spec: RunSpec) -> dict[str, Any]:
    """What validation and test say of one saved state: hard weights, or the float warm start."""
    checkpoint = load(path)
    is_float = name == "warm_start"
    restore(built.net, built.plan, checkpoint, weights="latent" if is_float else "hard")
    enable_quantizers(built.net, not is_float)
    built.lit.phases.let_go(is_quantized=not is_float)
    judge = L.Trainer(
        **trainer_options(spec.trainer.get("accelerator", "auto")),
        precision=spec.trainer.get("precision", "32-true"),
        **limits(built.data, spec),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    numbers: Mapping[str, float] = {
        **judge.validate(built.lit, datamodule=built.data, verbose=False)[0],
        **judge.test(built.lit, datamodule=built.data, verbose=False)[0],
    }
    keys = ("epoch", "global_step")
    place: dict[str, Any] = {key: checkpoint[key] for key in keys if key in checkpoint}
    confusion = None if is_float else built.lit.confusion
    return {
        **place,
        **{key.replace("/", "_"): value for key, value in numbers.items()},
        **({} if confusion is None else {"confusion": confusion}),
    }


def _rule(spec: RunSpec, steps: int) -> dict[str, Any]:
    """The rule's own numbers, and what they amounted to over `steps` quantized steps."""
    rule = spec.quant.rule
    own = {"bcgd": ("rho",), "binary_relax": ("initial", "final", "hard_from")}
    return {
        "name": rule.name,
        "method": spec.quant.weight.method,
        "numbers": {key: getattr(rule, key) for key in own.get(rule.name, ())},
        "quantized_steps": steps,
        "relaxed_steps": round(rule.hard_from * steps) if rule.name == "binary_relax" else 0,
        # share of the distance to the forward weights that blending alone covers
        "pull": 1 - (1 - rule.rho) ** steps if rule.name == "bcgd" else 0.0,
    }


def _device(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def result_lines(summary: Mapping[str, Any], folder: Path) -> str:
    """The accuracies of a finished run, what its rule did, and where its numbers are."""
    names = {"val_acc": "val", "val_agreement": "val agreement", "test_acc": "test"}
    lines = []
    for state in ("warm_start", "last", "selected"):
        if state in summary:
            r = summary[state]
            scores = [f"{title} {r[key]:.4f}" for key, title in names.items() if key in r]
            epoch = [f"(epoch {r['epoch']})"] if "epoch" in r else []
            lines.append("  ".join([f"{state:10}", *scores, *epoch]))
    if "teacher" in summary:
        teacher = summary["teacher"]
        lines.append(f"{'teacher':10}  test {teacher['test_acc']:.4f}  {shown(teacher['origin'])}")
    lines.append(rule_line(summary["rule"]))
    lines.append(f"{summary['wall_seconds']:.0f} s; {shown(folder / 'summary.json')}")
    if (folder / "report.html").is_file():
        lines.append(f"page: {shown(folder / 'report.html')}")
    else:
        lines.append("page: could not be written; scripts/report.py makes one of the run")
    run = shlex.quote(f"run={folder}")  # as a shell takes it
    return "\n".join([*lines, f"next: python scripts/export.py {shown(run)}"])


def rule_line(rule: Mapping[str, Any]) -> str:
    """What the update rule's numbers amounted to in this run, in plain words."""
    if rule["method"] != "update":
        return (
            f"weights by {rule['method']}, in the graph: {rule['quantized_steps']} quantized steps"
        )
    if rule["name"] == "float_only":
        return "rule float_only: no weight is projected"
    if rule["quantized_steps"] == 0:
        return f"rule {rule['name']}: no step, its projection alone"
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
