"""The option groups: defaults, ranges, contradictions, overrides."""

import dataclasses

import pytest

from qat.errors import SpecError
from qat.spec.check import config_hash
from qat.spec.data import DataSpec
from qat.spec.quant import (
    GRID_BITS,
    ActivationSpec,
    EndsSpec,
    Override,
    QuantSpec,
    RuleSpec,
    WeightSpec,
    activation_of,
    default_grid,
    weight_of,
)
from qat.spec.run import (
    RunSpec,
    SchedulerSpec,
    TrainingSpec,
    WarmStartSpec,
)

FLOAT = {
    "rule": {"name": "float_only"}, "weight": {"bits": 32}, "activation": {"bits": 32},
}  # fmt: skip
RUN = {
    "model": {"_target_": "x"}, "data": {}, "quant": {}, "optimizer": {}, "scheduler": {},
    "trainer": {"max_epochs": 3}, "warm_start": {}, "training": {},
}  # fmt: skip


def test_the_default_is_bcgd_w1a4():
    spec = QuantSpec()
    assert spec == QuantSpec.from_dict({})
    assert (spec.rule.name, spec.rule.rho) == ("bcgd", 1e-5)
    assert (spec.weight.bits, spec.activation.bits) == (1, 4)
    assert spec.ends == EndsSpec(first="quantized", last="quantized")
    assert spec.input_bits is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": {"bits": 0}}, "quant.weight.bits must be one of 1, .*got 0; use 32 for float"),
        ({"weight": {"bits": 9}}, "quant.weight.bits .*got 9"),
        ({"weight": {"bits": True}}, "quant.weight.bits .*got True"),
        ({"weight": {"bits": "1"}}, "quant.weight.bits .*got '1'"),
        ({"weight": {"grid": "round"}}, "quant.weight.grid must be one of binary, ternary"),
        ({"weight": {"bits": 1, "grid": "uniform"}}, "quant.weight.grid=uniform needs .*2, 3"),
        ({"weight": {"bits": 8, "grid": "power_of_two"}}, "in 2, 3, 4, 5, 6; got 8"),
        ({"weight": {"mu": 0}}, "quant.weight.mu"),
        ({"weight": {"granularity": "row"}}, "quant.weight.granularity must be one of tensor"),
        ({"activation": {"bits": 16}}, "quant.activation.bits .*use 32 to leave"),
        ({"activation": {"derivative": "swish"}}, "identity, relu, clipped_relu, .*; got 'swish'"),
        ({"activation": {"step_rate": -0.1}}, "quant.activation.step_rate"),
        ({"rule": {"name": "bcdg"}}, "quant.rule.name must be one of .*bcgd; got 'bcdg'"),
        ({"rule": {"rho": 1.5}}, "quant.rule.rho must be a number >= 0 and <= 1; got 1.5"),
        ({"rule": {"rh": 1}}, "quant.rule.rh is not an option; did you mean quant.rule.rho?"),
        ({"rule": {"initial": 5.0, "final": 2.0}}, "quant.rule.final must be >= .*5; got 2"),
        ({"rule": {"hard_from": 1.01}}, "quant.rule.hard_from"),
        ({"ends": {"first": "none"}}, "quant.ends.first must be one of quantized, float"),
        ({"input_bits": 1}, "quant.input_bits must be one of 2, 3"),
        ({"rule": {"name": "float_only"}}, "float_only moves float weights.*set quant.weight.bits"),
        ({"weight": {"bits": 32}}, "no weight to quantize.*use quant.rule.name=float_only"),
        ({"overrides": [{"weight": {}}]}, r"quant.overrides\[0\].match must be given"),
        ({"overrides": [{"match": "a", "weight": {"bit": 1}}]}, r"match=a\].weight.bit .*bits"),
        ({"overrides": [{"match": "a", "weight": {"bits": 0}}]}, r"match=a\].weight.bits"),
        ({"overrides": [{"match": "a", "activation": {"bits": 64}}]}, r"match=a\].activation"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(SpecError, match=message) as caught:
        QuantSpec.from_dict(values)
    assert "\n" not in str(caught.value)


def test_float_runs():
    spec = QuantSpec.from_dict(FLOAT)
    assert not spec.weight.is_quantized
    assert not spec.activation.is_quantized
    with pytest.raises(SpecError, match="float_only"):
        QuantSpec.from_dict(FLOAT | {"overrides": [{"match": "a", "weight": {"bits": 4}}]})


def test_some_quantized_layers_suffice():
    override = {"match": "a", "weight": {"bits": 4}}
    spec = QuantSpec.from_dict({"weight": {"bits": 32}, "overrides": [override]})
    assert weight_of(spec, spec.overrides[0]).bits == 4


def test_overrides_merge():
    spec = QuantSpec(
        weight=WeightSpec(bits=2, grid="power_of_two", granularity="channel", mu=0.5),
        activation=ActivationSpec(bits=3, derivative="relu"),
    )
    changed = weight_of(spec, Override(match="*", weight={"bits": 4}))
    assert changed == WeightSpec(bits=4, granularity="channel", mu=0.5)  # the grid went with 2 bits
    kept = weight_of(spec, Override(match="*", weight={"mu": 0.6}))
    assert (kept.grid, kept.bits, kept.mu) == ("power_of_two", 2, 0.6)
    activation = activation_of(spec, Override(match="*", activation={"bits": 8}))
    assert activation == ActivationSpec(bits=8, derivative="relu")


@pytest.mark.parametrize("bits", range(1, 9))
def test_default_grids_have_those_bits(bits):
    assert bits in GRID_BITS[default_grid(bits)]
    assert default_grid(bits) == {1: "binary", 2: "ternary"}.get(bits, "uniform")


def test_specs_are_values():
    assert QuantSpec() == QuantSpec()
    for spec in (QuantSpec(), RuleSpec(), WeightSpec(), ActivationSpec(), EndsSpec()):
        assert not hasattr(spec, "__dict__")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(spec, dataclasses.fields(spec)[0].name, 3)


def test_a_run():
    run = RunSpec.from_dict(RUN)
    assert run.quant == QuantSpec()
    assert run.data == DataSpec()
    assert (run.seed, run.resume, run.audit_only) == (1, None, False)
    assert run.scheduler == SchedulerSpec()
    assert run.training == TrainingSpec()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {}}, "trainer.max_epochs must be an integer >= 1; got None"),
        ({"trainer": {"max_epochs": True}}, "trainer.max_epochs .*got True"),
        ({"trainer": {"max_epochs": 0}}, "trainer.max_epochs .*got 0"),
        ({"warm_start": {"epochs": 3}}, "warm_start.epochs=3 leaves no epoch.*max_epochs=3"),
        ({"warm_start": {"epochs": -1}}, "warm_start.epochs"),
        ({"data": {"name": "cifar"}}, "data.name must be one of digits"),
        ({"data": {"batch_size": 1}}, "data.batch_size must be an integer >= 2; got 1"),
        ({"scheduler": {"milestones": [0.7, 0.4]}}, "scheduler.milestones must ascend"),
        ({"scheduler": {"milestones": [0.4, 1.0]}}, r"scheduler.milestones\[1\]"),
        ({"training": {"label_smoothing": 1}}, "training.label_smoothing"),
        ({"training": {"threads": 0}}, "training.threads must be an integer >= 1; got 0"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"seeds": 1}, "seeds is not an option; did you mean seed?"),
        ({"resume": 3}, "resume must be a text; got 3"),
    ],
)
def test_wrong_runs(changes, message):
    with pytest.raises(SpecError, match=message):
        RunSpec.from_dict(RUN | changes)


def test_a_missing_group_is_named():
    with pytest.raises(SpecError, match="trainer must be given"):
        RunSpec.from_dict({k: v for k, v in RUN.items() if k != "trainer"})


def test_a_float_run_may_be_all_warm_start():
    run = RunSpec.from_dict(RUN | {"quant": FLOAT, "warm_start": {"epochs": 3}})
    assert run.warm_start == WarmStartSpec(epochs=3)


def test_where_a_run_is_resumed_from_is_no_part_of_its_hash():
    assert config_hash(RUN) == config_hash(RUN | {"resume": "run", "resume_allow": ["seed"]})
    assert config_hash(RUN) != config_hash(RUN | {"seed": 7})


# groups in another form than the one that is wanted
BUILT = {
    "override-weight": (
        lambda: Override(match="fc", weight=WeightSpec(bits=4)),
        "quant.overrides[match=fc].weight must be a dict of options, got WeightSpec(",
    ),
    "override-activation": (
        lambda: Override(match="fc", activation=ActivationSpec()),
        "quant.overrides[match=fc].activation must be a dict of options, got Activ",
    ),
    "override-bits": (
        lambda: Override(match="fc", weight=4),
        "quant.overrides[match=fc].weight must be a dict of options, got 4",
    ),
    "override-match": (lambda: Override(match=4), "quant.overrides[match=4].match must be a text"),
    "weight": (lambda: QuantSpec(weight={"bits": 4}), "quant.weight must be a WeightSpec, got {"),
    "other": (lambda: QuantSpec(weight=ActivationSpec()), "quant.weight must be a WeightSpec, got"),
    "none": (lambda: QuantSpec(rule=None), "quant.rule must be a RuleSpec, got None"),
    "name": (lambda: QuantSpec(rule="bcgd"), "quant.rule must be a RuleSpec, got 'bcgd'"),
    "class": (lambda: QuantSpec(rule=RuleSpec), "quant.rule must be a RuleSpec, got <class"),
    "overrides": (
        lambda: QuantSpec(overrides=({"match": "fc", "weight": {"bits": 4}},)),
        "quant.overrides[0] must be an Override, got {",
    ),
    "no-list": (
        lambda: QuantSpec(overrides=Override(match="fc")),
        "quant.overrides must be a list, got Override(",
    ),
}


@pytest.mark.parametrize("name", BUILT)
def test_groups_are_built_or_refused_with_what_is_wanted(name):
    make, message = BUILT[name]
    with pytest.raises(SpecError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_overrides_may_be_a_list():
    override = Override(match="fc", weight={"bits": 4})
    assert weight_of(QuantSpec(overrides=[override]), override).bits == 4
