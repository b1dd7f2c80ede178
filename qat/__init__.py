"""Train networks whose weights and activations live on a few levels.

Every public name is resolved at its first use, so `import qat` loads nothing heavy.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat.audit import Audit as Audit
    from qat.audit import LayerAudit as LayerAudit
    from qat.audit import audit as audit
    from qat.audit_table import audit_table as audit_table
    from qat.calibrate import start_steps as start_steps
    from qat.distill.loss import FeatureAffinityLoss as FeatureAffinityLoss
    from qat.distill.loss import ProjectedAffinityLoss as ProjectedAffinityLoss
    from qat.distill.tap import FeatureTap as FeatureTap
    from qat.distill.teacher import Teacher as Teacher
    from qat.distill_spec import DistillSpec as DistillSpec
    from qat.errors import CheckpointError as CheckpointError
    from qat.errors import DataError as DataError
    from qat.errors import NonFiniteError as NonFiniteError
    from qat.errors import NotOnGridError as NotOnGridError
    from qat.errors import QatError as QatError
    from qat.errors import SpecError as SpecError
    from qat.export.convert import Converted as Converted
    from qat.export.convert import convert as convert
    from qat.export.header import Header as Header
    from qat.export.integer import IntegerNetwork as IntegerNetwork
    from qat.export.onnx_model import onnx_model as onnx_model
    from qat.export.trace import network_graph as network_graph
    from qat.functional.affinity import feature_affinity as feature_affinity
    from qat.functional.distillation import logit_kl as logit_kl
    from qat.functional.distillation import logit_mse as logit_mse
    from qat.functional.projected_affinity import projected_affinity as projected_affinity
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
    from qat.packed import load_packed as load_packed
    from qat.packed import save_packed as save_packed
    from qat.plan import weight_projections as weight_projections
    from qat.spec import ActivationSpec as ActivationSpec
    from qat.spec import EndsSpec as EndsSpec
    from qat.spec import Override as Override
    from qat.spec import QuantSpec as QuantSpec
    from qat.spec import RuleSpec as RuleSpec
    from qat.spec import WeightSpec as WeightSpec
    from qat.stages import stage_outputs as stage_outputs
    from qat.surgery import activation_quantizers as activation_quantizers
    from qat.surgery import enable_quantizers as enable_quantizers
    from qat.surgery import load_weights as load_weights
    from qat.surgery import prepare as prepare
    from qat.surgery import set_progress as set_progress
    from qat.trained import load_trained as load_trained

    __version__: str

_MODULES = {
    "ActivationQuantizer": "qat.nn.activation",
    "ActivationSpec": "qat.spec",
    "Audit": "qat.audit",
    "CheckpointError": "qat.errors",
    "Converted": "qat.export.convert",
    "DataError": "qat.errors",
    "DistillSpec": "qat.distill_spec",
    "EndsSpec": "qat.spec",
    "FeatureAffinityLoss": "qat.distill.loss",
    "FeatureTap": "qat.distill.tap",
    "Header": "qat.export.header",
    "IntegerNetwork": "qat.export.integer",
    "LayerAudit": "qat.audit",
    "LitClassifier": "qat.lit.classifier",
    "LitDistiller": "qat.lit.distiller",
    "NonFiniteError": "qat.errors",
    "NotOnGridError": "qat.errors",
    "Override": "qat.spec",
    "ProjectedAffinityLoss": "qat.distill.loss",
    "Projection": "qat.optim.quant_optimizer",
    "QatError": "qat.errors",
    "QuantOptimizer": "qat.optim.quant_optimizer",
    "QuantSpec": "qat.spec",
    "RuleSpec": "qat.spec",
    "Schedule": "qat.functional.schedule",
    "SignActivation": "qat.nn.sign_activation",
    "SpecError": "qat.errors",
    "Stairs": "qat.functional.stairs",
    "Teacher": "qat.distill.teacher",
    "UpdateRule": "qat.optim.rule",
    "WeightQuantizer": "qat.nn.weight",
    "WeightSpec": "qat.spec",
    "activation_quantizers": "qat.surgery",
    "audit": "qat.audit",
    "audit_table": "qat.audit_table",
    "bcgd": "qat.optim.rule",
    "binary_connect": "qat.optim.rule",
    "binary_relax": "qat.optim.rule",
    "convert": "qat.export.convert",
    "enable_quantizers": "qat.surgery",
    "feature_affinity": "qat.functional.affinity",
    "float_only": "qat.optim.rule",
    "load_packed": "qat.packed",
    "load_trained": "qat.trained",
    "load_weights": "qat.surgery",
    "logit_kl": "qat.functional.distillation",
    "logit_mse": "qat.functional.distillation",
    "network_graph": "qat.export.trace",
    "onnx_model": "qat.export.onnx_model",
    "parameter_groups": "qat.optim.groups",
    "prepare": "qat.surgery",
    "projected_affinity": "qat.functional.projected_affinity",
    "relu_stairs": "qat.functional.stairs",
    "save_packed": "qat.packed",
    "set_progress": "qat.surgery",
    "sign_ste": "qat.functional.sign",
    "signed_stairs": "qat.functional.stairs",
    "stage_outputs": "qat.stages",
    "staircase_ste": "qat.functional.staircase",
    "start_steps": "qat.calibrate",
    "weight_projections": "qat.plan",
}

__all__ = sorted(_MODULES)


class _Package(ModuleType):
    """A package in which a public function outlives the import of the module it is named after.

    Importing the module `qat.audit` binds it to the attribute `audit` of its package, where users
    find the function; `from qat.audit import ...` does not need that attribute.
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
