"""Run folders as a training run leaves them, made in a moment."""

import json

import yaml

CONFIG = {
    "model": {"_target_": "qat.models.small.small_model", "name": "lenet5"},
    "data": {"name": "digits", "root": None, "batch_size": 64},
    "quant": {
        "rule": {"name": "bcgd", "rho": 1e-05},
        "weight": {"method": "update", "bits": 1, "granularity": "tensor"},
        "activation": {"kind": "staircase", "bits": 4},
        "ends": {"first": "quantized", "last": "quantized"},
    },
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.02},
    "warm_start": {"epochs": 2},
    "training": {"threads": 1},
    "logger": {},
    "init_from": None,
    "seed": 1,
}
FLOAT = {
    "quant.rule.name": "float_only",
    "quant.weight.bits": 32,
    "quant.activation.bits": 32,
}
LAYERS = ("conv1", "fc")


def with_changes(config, changes):
    config = json.loads(json.dumps(config))
    for key, value in changes.items():
        *groups, name = key.split(".")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return config


def summary_of(last, selected):
    states = {
        name: {"epoch": 4, "val_acc": val, "test_acc": test, "test_loss": 0.5}
        for name, (val, test) in {"last": last, "selected": selected}.items()
    }
    audit = [
        {"name": name, "weights": 10, "weight_bits": 1, "grid": "binary", "scale": 0.5, "macs": 7}
        for name in LAYERS
    ]
    costs = {"bits": 1.0, "bytes": 1000, "float_bytes": 32000, "bops": 5e6, "wall_seconds": 60.0}
    return {**states, **costs, "audit": audit, "classes": ["cat", "dog"]}


def metrics_of(accuracies):
    rows = [
        f"{17 * (epoch + 1)},{epoch},{accuracy!r},{1 - accuracy!r},"
        for epoch, accuracy in enumerate(accuracies)
    ]
    return "\n".join(["step,epoch,val/acc,train/loss,quant/flip_rate", *rows, "50,,,,0.25", ""])


def write_run(
    runs,
    name,
    *,
    seed=1,
    quant="bcgd_w1a4",
    test=0.9,
    val=0.95,
    selected=None,
    changes=(),
    overrides=(),
    state="finished",
    error=None,
    curve=(0.5, 0.75, 0.6, 0.8),
    **more,
):
    folder = runs / name
    (folder / ".hydra").mkdir(parents=True)
    kind = FLOAT if quant == "float" else {}
    config = with_changes(CONFIG, {"seed": seed, **kind, **dict(changes)})
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    command = [f"quant={quant}", f"seed={seed}", *overrides]
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(command))
    (folder / "status.json").write_text(json.dumps({"state": state, "error": error}))
    (folder / "metrics.csv").write_text(metrics_of(curve))
    if state == "finished":
        content = summary_of((val, test), selected or (val, test)) | more
        (folder / "summary.json").write_text(json.dumps(content))
    return folder
