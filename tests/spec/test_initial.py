"""The config group `init`, and runs without an epoch."""

import pytest

from qat.compose import composed, conf_folder
from qat.errors import SpecError
from qat.spec.check import config_hash

NOW = ["model=lenet5", "quant=bcgd_w4a4", "trainer.max_epochs=0"]


def spec_of(*overrides):
    return composed(conf_folder(), list(overrides)).spec


def test_options_of_each_method():
    assert spec_of(*NOW, "init=rounding").init.method == "rounding"
    comq = spec_of(*NOW, "init=comq", "init.order=greedy", "init.images=64").init
    assert (comq.method, comq.order, comq.images, comq.sweeps) == ("comq", "greedy", 64, 3)
    magr = spec_of(*NOW, "init=magr_comq", "init.magr_alpha=0.01").init
    assert (magr.method, magr.magr_alpha, magr.sweeps) == ("magr_comq", 0.01, 3)


def test_left_out_it_changes_neither_the_options_nor_the_hash():
    plain = composed(conf_folder(), ["model=lenet5"])
    assert plain.spec.init is None
    assert "init" not in plain.config
    assert config_hash({**plain.config, "init": None}) == config_hash(plain.config)
    other = composed(conf_folder(), ["model=lenet5", "init=comq", "warm_start.epochs=0"])
    assert config_hash(other.config) != config_hash(plain.config)


def test_without_an_epoch_there_is_no_warm_start():
    assert spec_of(*NOW, "init=comq").warm_epochs == 0
    assert spec_of("model=lenet5").warm_epochs == 8


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (NOW, r"max_epochs must be an integer >= 1; got 0; 0, without training, needs init=round"),
        (
            [*NOW, "init=comq", "trainer.max_epochs=-1"],
            r"max_epochs must be an integer >= 0; got -1",
        ),
        ([*NOW[:2], "init=comq"], r"warm_start.epochs=8 would train.*use warm_start.epochs=0"),
        ([NOW[0], NOW[2], "quant=float", "init=comq"], r"quant has none for them; choose one"),
        ([NOW[0], NOW[2], "quant=lsq_w4a4", "init=comq"], r"method=lsq has none; use init=null"),
        (
            [*NOW, "init=comq", "quant.weight.grid=power_of_two", "quant.weight.mu=0.4"],
            r"quant.weight.mu=0.4.*use a mu above 0.5",
        ),
        ([*NOW, "init=comq", "distill=kd"], r"distill has no effect; use distill=null"),
        ([*NOW, "init=comq", "init.order=random"], r"init.order must be one of cyclic, greedy"),
        ([*NOW, "init=comq", "init.method=adaquant"], r"must be one of rounding, comq, magr_comq"),
        ([*NOW, "init=comq", "init.sweeps=0"], r"init.sweeps must be an integer >= 1; got 0"),
    ],
)
def test_what_cannot_be_is_refused(overrides, match):
    with pytest.raises(SpecError, match=match):
        spec_of(*overrides)
