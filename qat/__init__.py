"""Train networks whose weights and activations live on a few levels.

Every public name is resolved at its first use, so `import qat` loads nothing heavy.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat.distill.loss import FeatureAffinityLoss as FeatureAffinityLoss
    from qat.distill.loss import ProjectedAffinityLoss as ProjectedAffinityLoss
    from qat.distill.tap import FeatureTap as FeatureTap
    from qat.distill.teacher import Teacher as Teacher
    from qat.errors import CheckpointError as CheckpointError
    from qat.errors import DataError as DataError
    from qat.errors import NonFiniteError as NonFiniteError
    from qat.errors import NotOnGridError as NotOnGridError
    from qat.errors import QatError as QatError
    from qat.errors import SpecError as SpecError
    from qat.export.integer.network import IntegerNetwork as IntegerNetwork
    from qat.export.integer.trace import network_graph as network_graph
    from qat.export.onnx.model import onnx_model as onnx_model
    from qat.export.packed.convert import Converted as Converted
    from qat.export.packed.convert import convert as convert
    from qat.export.packed.network import load_packed as load_packed
    from qat.export.packed.network import save_packed as save_packed
    from qat.functional.affinity.feature_affinity import feature_affinity as feature_affinity
    from qat.functional.affinity.projected import projected_affinity as projected_affinity
    from qat.functional.distillation import logit_kl as logit_kl
    from qat.functional.distillation import logit_mse as logit_mse
    from qat.functional.schedule import Schedule as Schedule
    from qat.functional.sign import sign_ste as sign_ste
    from qat.functional.staircase import staircase_ste as staircase_ste
    from qat.functional.stairs import Stairs as Stairs
    from qat.functional.stairs import relu_stairs as relu_stairs
    from qat.functional.stairs import signed_stairs as signed_stairs
    from qat.lit.classifier import LitClassifier as LitClassifier
    from qat.lit.distiller import LitDistiller as LitDistiller
    from qat.nn.activation import ActivationQuantizer as ActivationQuantizer
    from qat.nn.sign_activation import SignActivation as SignActivation
    from qat.nn.weight import WeightQuantizer as WeightQuantizer
    from qat.optim.groups import parameter_groups as parameter_groups
    from qat.optim.quant_optimizer import Projection as Projection
    from qat.optim.quant_optimizer import QuantOptimizer as QuantOptimizer
    from qat.optim.rule import UpdateRule as UpdateRule
    from qat.optim.rule import bcgd as bcgd
    from qat.optim.rule import binary_connect as binary_connect
    from qat.optim.rule import binary_relax as binary_relax
    from qat.optim.rule import float_only as float_only
    from qat.quantize.audit import Audit as Audit
    from qat.quantize.audit import LayerAudit as LayerAudit
    from qat.quantize.audit import audit as audit
    from qat.quantize.audit_table import audit_table as audit_table
    from qat.quantize.calibrate import start_steps as start_steps
    from qat.quantize.plan import weight_projections as weight_projections
    from qat.quantize.prepare import activation_quantizers as activation_quantizers
    from qat.quantize.prepare import enable_quantizers as enable_quantizers
    from qat.quantize.prepare import load_weights as load_weights
    from qat.quantize.prepare import prepare as prepare
    from qat.quantize.prepare import set_progress as set_progress
    from qat.quantize.stages import stage_outputs as stage_outputs
    from qat.spec.distill import DistillSpec as DistillSpec
    from qat.spec.header import Header as Header
    from qat.spec.quant import ActivationSpec as ActivationSpec
    from qat.spec.quant import EndsSpec as EndsSpec
    from qat.spec.quant import Override as Override
    from qat.spec.quant import QuantSpec as QuantSpec
    from qat.spec.quant import RuleSpec as RuleSpec
    from qat.spec.quant import WeightSpec as WeightSpec
    from qat.train.open_run import load_trained as load_trained

    __version__: str

_MODULES = {
    "ActivationQuantizer": "qat.nn.activation",
    "ActivationSpec": "qat.spec.quant",
    "Audit": "qat.quantize.audit",
    "CheckpointError": "qat.errors",
    "Converted": "qat.export.packed.convert",
    "DataError": "qat.errors",
    "DistillSpec": "qat.spec.distill",
    "EndsSpec": "qat.spec.quant",
    "FeatureAffinityLoss": "qat.distill.loss",
    "FeatureTap": "qat.distill.tap",
    "Header": "qat.spec.header",
    "IntegerNetwork": "qat.export.integer.network",
    "LayerAudit": "qat.quantize.audit",
    "LitClassifier": "qat.lit.classifier",
    "LitDistiller": "qat.lit.distiller",
    "NonFiniteError": "qat.errors",
    "NotOnGridError": "qat.errors",
    "Override": "qat.spec.quant",
    "ProjectedAffinityLoss": "qat.distill.loss",
    "Projection": "qat.optim.quant_optimizer",
    "QatError": "qat.errors",
    "QuantOptimizer": "qat.optim.quant_optimizer",
    "QuantSpec": "qat.spec.quant",
    "RuleSpec": "qat.spec.quant",
    "Schedule": "qat.functional.schedule",
    "SignActivation": "qat.nn.sign_activation",
    "SpecError": "qat.errors",
    "Stairs": "qat.functional.stairs",
    "Teacher": "qat.distill.teacher",
    "UpdateRule": "qat.optim.rule",
    "WeightQuantizer": "qat.nn.weight",
    "WeightSpec": "qat.spec.quant",
    "activation_quantizers": "qat.quantize.prepare",
    "audit": "qat.quantize.audit",
    "audit_table": "qat.quantize.audit_table",
    "bcgd": "qat.optim.rule",
    "binary_connect": "qat.optim.rule",
    "binary_relax": "qat.optim.rule",
    "convert": "qat.export.packed.convert",
    "enable_quantizers": "qat.quantize.prepare",
    "feature_affinity": "qat.functional.affinity.feature_affinity",
    "float_only": "qat.optim.rule",
    "load_packed": "qat.export.packed.network",
    "load_trained": "qat.train.open_run",
    "load_weights": "qat.quantize.prepare",
    "logit_kl": "qat.functional.distillation",
    "logit_mse": "qat.functional.distillation",
    "network_graph": "qat.export.integer.trace",
    "onnx_model": "qat.export.onnx.model",
    "parameter_groups": "qat.optim.groups",
    "prepare": "qat.quantize.prepare",
    "projected_affinity": "qat.functional.affinity.projected",
    "relu_stairs": "qat.functional.stairs",
    "save_packed": "qat.export.packed.network",
    "set_progress": "qat.quantize.prepare",
    "sign_ste": "qat.functional.sign",
    "signed_stairs": "qat.functional.stairs",
    "stage_outputs": "qat.quantize.stages",
    "staircase_ste": "qat.functional.staircase",
    "start_steps": "qat.quantize.calibrate",
    "weight_projections": "qat.quantize.plan",
}

__all__ = sorted(_MODULES)


class _Package(ModuleType):
    """A package in which a public function outlives the import of the module it is named after.

    Importing the module `qat.audit` binds it to the attribute `audit` of its package, where users
    find the function; `from qat.quantize.audit import ...` does not need that attribute.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("qat")
    if name not in _MODULES:
        raise AttributeError(f"module 'qat' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
