"""Who may import whom: the layers of the design, checked on the imports of every file."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "qat").rglob("*.py"))

# layer of each part of qat; a part may import itself, lower layers, and what PEERS says
LAYERS = {
    "errors": 0, "names": 0, "schema": 1, "spec": 2, "distill_spec": 2, "unlabelled_spec": 2,
    "glyphs_spec": 2,
    "run_spec": 3, "lit.model_options": 3, "status": 3, "overrides": 3, "extras": 1,
    "lit.data.layout": 4, "preflight": 5, "code_version": 2, "folder_lock": 1, "sweep_spec": 3,
    "targets": 2, "machine": 2, "whole_file": 1, "wandb_runs": 3,
    "functional": 6, "nn": 7, "optim": 7, "distill": 7, "theory": 7,
    "flow": 8, "plan": 8, "surgery": 8, "calibrate": 8, "audit": 8, "audit_table": 8,
    "stages": 8, "report": 9, "export": 9, "lit": 10, "compose": 10, "packed": 11, "trained": 11,
    "teacher_training": 11, "teacher_source": 12, "packed_run": 12, "deployed": 13, "job": 13,
    "peers": 13, "commands": 14, "sweep": 14, "cli": 15, "": 16,
}  # fmt: skip
PEERS = {("plan", "flow"), ("surgery", "flow"), ("surgery", "plan"), ("audit", "flow")}
PEERS |= {("audit", "plan"), ("calibrate", "plan"), ("calibrate", "surgery")}
PEERS |= {("audit_table", "audit"), ("stages", "flow")}
# parts that must load without torch see these only
LIGHT = {"errors", "names", "schema", "spec", "distill_spec", "unlabelled_spec", "run_spec"}
LIGHT |= {"targets", "lit.model_options", "lit.data.layout", "glyphs_spec", "preflight"}
TORCH = {"torch"}
LIGHTNING = {"torch", "lightning", "torchmetrics", "torchvision", "timm", "numpy", "PIL", "sklearn"}
PACKAGES = {
    **{part: set() for part in LIGHT},
    **dict.fromkeys(("functional", "nn", "optim", "distill", "theory"), TORCH),
    **dict.fromkeys(("flow", "plan", "surgery", "calibrate", "audit", "audit_table"), TORCH),
    **dict.fromkeys(("stages", "trained", "teacher_source", "status"), TORCH),
    "export": {"torch", "onnx", "onnxruntime", "numpy", "safetensors"},
    "lit": LIGHTNING | {"safetensors", "typing_extensions", "matplotlib"},
    "report": {"torch", "matplotlib", "cycler", "yaml"},
    "compose": {"hydra", "omegaconf", "torchvision", "timm"},
    "teacher_training": set(),
    "extras": set(),
    "packed": TORCH,
    "packed_run": TORCH,
    "deployed": TORCH,
    "commands": {"torch", "onnx", "torchvision", "PIL", "omegaconf", "yaml"},
    "overrides": set(),
    "job": set(),
    "sweep": {"optuna", "yaml"},
    "peers": {"torch", "torchmetrics", "torchao", "brevitas", "lightning"},
    "code_version": set(),
    "folder_lock": set(),
    "sweep_spec": set(),
    "machine": set(),
    "whole_file": set(),
    "wandb_runs": set(),
    "cli": {"hydra", "omegaconf"},
    "": set(),
}


def part_of(module):
    """Part of qat that a dotted module name belongs to: `qat.nn.weight` -> `nn`."""
    name = module.removeprefix("qat").lstrip(".")
    return name if name in LAYERS else name.partition(".")[0]


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Every imported module of a file, also inside functions; relative ones are refused."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


def allowed(importer, imported):
    """Whether the part `importer` may import the part `imported`."""
    if importer == imported or (importer, imported) in PEERS:
        return True
    if importer == "functional" and imported in LIGHT - {"errors", "names"}:
        return False
    if importer in ("nn", "optim", "distill", "theory") and imported in LIGHT:
        return imported in ("errors", "names", "spec")
    return LAYERS[imported] < LAYERS[importer]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_go_down_only(path):
    part = part_of(module_of(path))
    assert part in LAYERS, f"{path}: give the new part of qat a layer"
    for name in imports(path):
        top = name.partition(".")[0]
        if top == "qat":
            assert allowed(part, part_of(name)), f"{path.name} ({part}) imports {name}"
        elif top not in sys.stdlib_module_names:
            assert top in PACKAGES[part], f"{path.name} ({part}) imports {name}"


def test_the_rules_can_fail():
    assert not allowed("nn", "optim")
    assert not allowed("optim", "nn")
    assert not allowed("functional", "spec")
    assert not allowed("flow", "plan")
    assert not allowed("lit", "cli")
    assert not allowed("audit", "lit")
    assert allowed("lit", "surgery")
    assert "hydra" not in PACKAGES["lit"]
    assert part_of("qat.lit.model_options") == "lit.model_options"
    assert part_of("qat.lit.data.module") == "lit"
    assert part_of("qat") == ""


def test_theory_knows_functional_only():
    for path in (ROOT / "qat" / "theory").rglob("*.py"):
        for name in imports(path):
            if name.startswith("qat"):
                known = ("theory", "functional", "errors", "names")
                assert part_of(name) in known, f"{path.name}: {name}"


def test_only_the_command_line_knows_hydra():
    users = {part_of(module_of(p)) for p in FILES for n in imports(p) if n.startswith("hydra")}
    assert users == {"cli", "compose"}
