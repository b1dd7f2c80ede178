"""The whole product: every coarse derivative with every rule, on a two-layer network."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from qat.functional.ste import DERIVATIVES
from qat.nn.activation import ActivationQuantizer
from qat.nn.sign_activation import SignActivation

KINDS = {"staircase": lambda name: ActivationQuantizer(2, name), "sign": SignActivation}


@pytest.fixture(params=DERIVATIVES)
def derivative(request):
    return request.param


@pytest.fixture(params=KINDS)
def cell_of(request, case, derivative):
    """Makes a run of the cell (rule, derivative, kind of activation)."""

    def make():
        run = case.make()
        # the staircase's step is the optimizer's already, the sign has none
        act = KINDS[request.param](derivative)
        if request.param == "staircase":
            act.step = run.net.act.step
        run.net.act = act
        return run

    return make


def train(run, start, stop):
    """Steps with the schedule of the derivative moving."""
    for number in range(start, stop):
        run.net.act.set_progress(number / 4)
        run.train(number, number + 1)
    return run


@pytest.mark.parametrize("base", ["sgd"], indirect=True)
@pytest.mark.product("derivative cell_of")  # a rule acts outside of the graph
def test_two_steps_and_an_exact_resume(cell_of, same):
    whole = train(cell_of(), 0, 4)
    first, second = train(cell_of(), 0, 2), cell_of()
    assert not torch.equal(first.net.first.weight.grad, torch.zeros_like(first.net.first.weight))
    second.net.load_state_dict(first.net.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    same(first, second)
    same(whole, train(second, 2, 4))


# by day each derivative is compiled by itself, and each rule: functional/, test_compile.py
@pytest.mark.slow
@pytest.mark.parametrize("base", ["sgd"], indirect=True)
def test_compiled_training_is_eager_training(cell_of, same):
    torch._dynamo.reset()
    compiled = cell_of()
    counter = CompileCounterWithBackend("aot_eager")
    compiled.net.compile(fullgraph=True, backend=counter)
    same(train(cell_of(), 0, 4), train(compiled, 0, 4))
    assert counter.frame_count == 1
