"""Rules with a compiled network: equal to eager, compiled once although theta moves."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend


@pytest.mark.parametrize("base", ["sgd"], indirect=True)
@pytest.mark.parametrize(
    ("derivative", "step_derivative"),
    [("identity", "exact"), ("relu", "three_valued"), ("clipped_relu", "two_valued")],
)
@pytest.mark.product
def test_compiled_training_is_eager_training(case, same, derivative, step_derivative):
    torch._dynamo.reset()
    eager, compiled = case.make(), case.make()
    for run in (eager, compiled):
        run.net.act.derivative, run.net.act.step_derivative = derivative, step_derivative
    counter = CompileCounterWithBackend("aot_eager")
    compiled.net.compile(fullgraph=True, backend=counter)
    same(eager.train(0, 5), compiled.train(0, 5))
    assert counter.frame_count == 1
