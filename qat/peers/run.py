"""Peer run in its folder: train, test once, count levels, summary.json, status.json."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from qat.data.module import ImageData
from qat.errors import QatError, SpecError
from qat.lit.classifier import MOST_CLASSES
from qat.lit.resume.csv_logger import RunCsvLogger
from qat.lit.resume.signals import Signals
from qat.peers.levels import audited, totals
from qat.peers.loop import Fitted, Kept, PeerLoop, evaluated
from qat.peers.methods import package_version
from qat.peers.peer import Peer
from qat.quantize.audit import Audit
from qat.spec.check import config_hash
from qat.spec.run import RunSpec
from qat.storage.lock import only_process
from qat.storage.provenance import sources_hash, versions
from qat.storage.status import Status, is_finished, read_status
from qat.train.build import Built, Parts, build
from qat.train.targets import build_network, instantiated

# what the loop does not have; these are the values of a run that it repeats
_TRAINER = {
    "devices": 1,
    "strategy": "auto",
    "precision": "32-true",
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "check_val_every_n_epoch": 1,
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "limit_test_batches": 1.0,
}


def run_peer(
    config: Mapping[str, Any],
    spec: RunSpec,
    folder: Path,
    peer: Peer,
    *,
    record: Callable[[], None] = lambda: None,
) -> bool:
    """Train a peer in `folder`, unless it is finished there; an interrupted run starts anew.

    Args:
        config: resolved, plain values, with the key `peer`.
        spec: the same without that key, checked; its quant is float.
        folder: run folder.
        peer: to be trained.
        record: writes the config into the folder, once it is clear that the run may begin.

    Returns:
        Whether it was trained now.

    Raises:
        QatError: an option that the loop does not have, a folder of another config, a loss that is
            not finite, or a weight that was not quantized.
    """
    check_supported(spec)
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder):
        if _is_finished(folder, config_hash(config)):
            print(f"{folder} is finished; see its summary.json")
            return False
        # time and threads of a run that left nothing to go on from are not this one's
        (folder / "status.json").unlink(missing_ok=True)
        record()
        status = Status(folder, config_hash(config))
        status.code |= {"sources": sources_hash(also="peers")}
        with status.recording_failures(), Signals():
            _run(config, spec, folder, peer, status)
    return True


def check_supported(spec: RunSpec) -> None:
    """Raise SpecError for an option that a peer's loop does not have."""
    for key, wanted in _TRAINER.items():
        given = spec.trainer.get(key, wanted)
        if given != wanted:
            raise SpecError(f"trainer.{key}={given} is not for peers; leave it at {wanted}")
    if spec.trainer.get("accelerator", "auto") not in ("auto", "cpu"):
        raise SpecError(
            f"trainer.accelerator={spec.trainer['accelerator']}: peers train on the CPU"
        )
    unused = {
        "distill": spec.distill is None,
        "init_from": spec.init_from is None,
        "resume": spec.resume is None,
        "audit_only": not spec.audit_only,
        "training.compile": not spec.training.compile,
        "training.bn_reestimate": spec.training.bn_reestimate == 0,
    }
    for key, is_unused in unused.items():
        if not is_unused:
            raise SpecError(f"{key} is not for peers; leave it out")
    if spec.warm_start.epochs >= spec.trainer["max_epochs"]:
        raise SpecError(
            f"warm_start.epochs={spec.warm_start.epochs} leaves no epoch for the quantized phase: "
            f"trainer.max_epochs={spec.trainer['max_epochs']}; lower the one or raise the other"
        )


def _is_finished(folder: Path, wanted: str) -> bool:
    before = read_status(folder)
    if before.get("config_hash", wanted) != wanted:
        raise SpecError(
            f"folder={folder} holds a run of another config; choose another folder or delete it"
        )
    if before and before.get("state") != "finished":
        print(f"{folder}: {before.get('state')} before; peers are not continued, it starts anew")
    return is_finished(folder, wanted)


def _run(
    config: Mapping[str, Any], spec: RunSpec, folder: Path, peer: Peer, status: Status
) -> None:
    parts = Parts(
        model=lambda data: build_network(config["model"], data),
        optimizer=instantiated(config["optimizer"], "optimizer"),
    )
    built = build(spec, parts)
    status.begin(())
    logger = RunCsvLogger(folder)
    logger.rewind()
    print(f"run folder: {folder}", flush=True)
    fitted = PeerLoop(built, spec, optimizer=parts.optimizer, peer=peer, logger=logger).fit()
    summary = status.write_summary(_summary(built, spec, peer, fitted))
    status.finish(summary)
    for state in ("warm_start", "last", "selected"):
        if state in summary:
            r = summary[state]
            print(f"{state:10}  val {r['val_acc']:.4f}  test {r['test_acc']:.4f}")
    print(f"{summary['wall_seconds']:.0f} s; {folder / 'summary.json'}", flush=True)


def _summary(built: Built, spec: RunSpec, peer: Peer, fitted: Fitted) -> dict[str, Any]:
    results, found = _tested(built, peer, fitted)
    return {
        **results,
        **totals(found),
        "rule": {
            "name": "peer",
            "method": peer.package or "float",
            "numbers": dict(peer.numbers),
            "quantized_steps": fitted.quantized_steps,
        },
        "steps": fitted.steps,
        "epochs": spec.trainer["max_epochs"],
        "seed": spec.seed,
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "versions": versions() | package_version(peer),
        "audit": found.to_dict()["layers"],
        "classes": list(built.data.classes),
        "fit_seconds": fitted.seconds,
    }


def _tested(built: Built, peer: Peer, fitted: Fitted) -> tuple[dict[str, Any], Audit]:
    """Test metrics of each kept state, and the audit of the selected one, else of the last."""
    tested = {**fitted.states, **({"warm_start": fitted.warm} if fitted.warm else {})}
    results = {name: _row(name, kept, built.data) for name, kept in tested.items()}
    home = fitted.states.get("selected", fitted.states["last"])
    return results, audited(peer, home.net, fitted.twin, built.example)


def _row(name: str, kept: Kept, data: ImageData) -> dict[str, Any]:
    val = evaluated(kept.net, data.val_dataloader(), data.num_classes)
    if not math.isclose(kept.val["loss"], val["loss"], rel_tol=1e-5):
        raise QatError(
            f"the {name} network had val/loss {kept.val['loss']}, its copy has {val['loss']}; the "
            "package does not survive copy.deepcopy"
        )
    has_confusion = name != "warm_start" and data.num_classes <= MOST_CLASSES
    confusion = MulticlassConfusionMatrix(data.num_classes) if has_confusion else None
    test = evaluated(kept.net, data.test_dataloader(), data.num_classes, confusion=confusion)
    return {
        **kept.place,
        **{f"val_{key}": value for key, value in kept.val.items()},
        **{f"test_{key}": value for key, value in test.items()},
        **({} if confusion is None else {"confusion": confusion.compute().tolist()}),
    }
