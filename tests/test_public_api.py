"""The public names of `qat`, frozen; nothing heavy is imported before one is used."""

import ast
import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import qat

PUBLIC = [
    "ActivationQuantizer",
    "ActivationSpec",
    "Audit",
    "CheckpointError",
    "Converted",
    "DataError",
    "DistillSpec",
    "EndsSpec",
    "FeatureAffinityLoss",
    "FeatureTap",
    "Header",
    "IntegerNetwork",
    "LayerAudit",
    "LitClassifier",
    "LitDistiller",
    "NonFiniteError",
    "NotOnGridError",
    "Override",
    "ProjectedAffinityLoss",
    "Projection",
    "QatError",
    "QuantOptimizer",
    "QuantSpec",
    "Quantization",
    "Quantize",
    "RuleSpec",
    "Schedule",
    "SignActivation",
    "SpecError",
    "Stairs",
    "Teacher",
    "UpdateRule",
    "WeightQuantizer",
    "WeightSpec",
    "activation_quantizers",
    "audit",
    "audit_table",
    "bcgd",
    "binary_connect",
    "binary_relax",
    "convert",
    "enable_quantizers",
    "feature_affinity",
    "float_only",
    "load_packed",
    "load_trained",
    "load_weights",
    "logit_kl",
    "logit_mse",
    "named_quantization",
    "network_graph",
    "onnx_model",
    "parameter_groups",
    "prepare",
    "projected_affinity",
    "relu_stairs",
    "save_packed",
    "set_progress",
    "set_runtime",
    "sign_ste",
    "signed_stairs",
    "stage_outputs",
    "staircase_ste",
    "start_steps",
    "weight_projections",
]

HEAVY = {
    *("torch", "lightning", "hydra", "torchvision", "timm", "wandb", "sklearn", "numpy"),
    *("scipy", "jinja2", "filelock"),
}


def loaded_after(code):
    """Top-level packages in `sys.modules` of a fresh process after `code`."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    return {name.partition(".")[0] for name in json.loads(out.splitlines()[-1])}


def stub():
    """Module of each name that type checkers and `qat/__init__.py` read in the stub."""
    tree = ast.parse(Path(qat.__file__).with_suffix(".pyi").read_text(encoding="ascii"))
    lines = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = [(alias, f"qat.{line.module}") for line in lines for alias in line.names]
    assert all(line.level == 1 for line in lines)
    assert all(alias.asname == alias.name for alias, _ in names)  # else it is not exported
    return {alias.name: module for alias, module in names}


def test_the_list_is_frozen_and_sorted():
    assert qat.__all__ == PUBLIC == sorted(PUBLIC)
    assert dir(qat) == sorted([*PUBLIC, "__version__"])
    assert sorted(stub()) == PUBLIC


def test_every_name_is_the_one_its_module_defines():
    for name, module in stub().items():
        value = getattr(qat, name)
        assert value is getattr(importlib.import_module(module), name), name
        defined_in = str(getattr(value, "__module__", None))
        assert defined_in == module or not defined_in.startswith("qat"), name


@pytest.mark.parametrize(
    "first",
    [
        "import qat; qat.audit; import qat.quantize.audit",
        pytest.param(
            "import qat.quantize.audit; from qat.quantize.audit_table import audit_table",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_functions_win_over_modules_of_their_name(first):
    code = f"{first}\nimport qat, types\nfrom qat import audit, audit_table\n"
    code += "for f in (qat.audit, qat.audit_table, audit, audit_table):\n"
    code += "    assert isinstance(f, types.FunctionType), f\n"
    code += "assert isinstance(sys.modules['qat.quantize.audit'], types.ModuleType)"
    loaded_after(code)


def test_import_is_light():
    assert not loaded_after("import qat; dir(qat); qat.__all__; qat.__version__") & HEAVY


@pytest.mark.parametrize("name", ["QatError", "QuantSpec", "SpecError"])
def test_specs_and_errors_are_light(name):
    assert not loaded_after(f"import qat; qat.{name}") & HEAVY


def test_checking_a_command_needs_no_torch():
    assert not loaded_after("import qat.spec.check") & HEAVY
    loaded = loaded_after("import qat.compose")
    assert not loaded & (HEAVY - {"hydra"})
    assert "hydra" in loaded


def test_training_in_a_loop_needs_neither_lightning_nor_hydra():
    own = {"LitClassifier", "LitDistiller", "Quantize", "load_trained"}  # these are made of them
    used = " ".join(f"qat.{name};" for name in PUBLIC if name not in own)
    loaded = loaded_after(f"import qat; {used}")
    assert "torch" in loaded
    assert not loaded & {"lightning", "hydra", "torchvision", "timm", "wandb"}


def test_version():
    assert qat.__version__ == importlib.metadata.version("qat")


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qat.nothing
    assert not hasattr(qat, "Tensor")
    assert importlib.import_module("qat.optim.rule") is qat.optim.rule
