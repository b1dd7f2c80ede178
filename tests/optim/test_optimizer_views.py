"""QuantOptimizer for its neighbours: schedulers, scalers, contexts, hand-made changes, groups."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

from qat.errors import QatError
from qat.nn.weight import WeightQuantizer
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import UpdateRule, bcgd, binary_connect, binary_relax, float_only

BINARY = WeightQuantizer(1)


def make(rule=None, base=torch.optim.SGD, **options):
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    inner = base(net.named_parameters(), **{"lr": 0.1, **options})
    return net, inner, QuantOptimizer(inner, {net.weight: BINARY}, rule or binary_connect())


def step(net, optimizer):
    optimizer.zero_grad()
    net(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()


def latent(optimizer):
    return optimizer.latent_pairs()[0][0].clone()


def test_groups_state_and_defaults_are_live_views():
    net, base, optimizer = make(base=torch.optim.AdamW)
    step(net, optimizer)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults
    optimizer.param_groups[0]["lr"] = 0.7
    assert base.param_groups[0]["lr"] == 0.7
    base.load_state_dict(base.state_dict())  # replaces the base's own objects
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert set(optimizer.state[net.weight]) == {"step", "exp_avg", "exp_avg_sq"}


def test_nothing_else_is_forwarded():
    _, base, optimizer = make()
    base.special = 1
    base._step_supports_amp_scaling = True
    assert not hasattr(optimizer, "special")
    assert not hasattr(optimizer, "_step_supports_amp_scaling")
    assert isinstance(optimizer, torch.optim.Optimizer)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: StepLR(o, 2, gamma=0.1),
        lambda o: LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: CosineAnnealingLR(o, 6),
        lambda o: OneCycleLR(o, 1.0, total_steps=8),
    ],
)
def test_schedulers_attach_to_the_wrapper(schedule, recwarn):
    net, base, optimizer = make(momentum=0.9)
    twin_net, twin, _ = make(float_only(), momentum=0.9)
    scheduler, reference = schedule(optimizer), schedule(twin)
    for _ in range(6):
        step(net, optimizer)
        scheduler.step()
        step(twin_net, twin)
        reference.step()
        assert base.param_groups[0]["lr"] == twin.param_groups[0]["lr"]
        assert scheduler.get_last_lr() == reference.get_last_lr()
    assert not recwarn.list  # a scheduler that misses the steps warns


def test_step_hooks_of_the_wrapper_run():
    net, _, optimizer = make()
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    step(net, optimizer)
    assert calls == ["before", "after"]


@pytest.mark.parametrize("theta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("context", ["hard_weights", "latent_weights"])
def test_contexts_show_and_restore(theta, context):
    net, _, optimizer = make(UpdateRule(blend=lambda t: 0.0, relax=lambda t: theta))
    step(net, optimizer)
    forward, weights = net.weight.detach().clone(), latent(optimizer)
    with getattr(optimizer, context)():
        shown = BINARY(weights) if context == "hard_weights" else weights
        assert torch.equal(net.weight, shown)
    assert torch.equal(net.weight, forward)
    with pytest.raises(ZeroDivisionError), getattr(optimizer, context)():
        _ = 1 / 0
    assert torch.equal(net.weight, forward)
    assert torch.equal(latent(optimizer), weights)


@pytest.mark.parametrize("context", ["hard_weights", "latent_weights"])
def test_contexts_refuse_what_would_lose_weights(context):
    net, _, optimizer = make()
    before = latent(optimizer)
    with getattr(optimizer, context)():
        for wrong in (optimizer.step, optimizer.sync_latent):
            with pytest.raises(QatError, match=f"inside {context}"):
                wrong()
        for inner in (optimizer.hard_weights, optimizer.latent_weights):
            with pytest.raises(QatError, match=f"inside {context}"), inner():
                pass
    assert torch.equal(latent(optimizer), before)
    assert optimizer.completed_steps == 0
    step(net, optimizer)  # and works again afterwards
    assert optimizer.completed_steps == 1


@pytest.mark.parametrize("theta", [0.0, 0.4, 1.0])
def test_sync_latent_takes_weights_changed_by_hand(theta):
    net, _, optimizer = make(UpdateRule(blend=lambda t: 0.0, relax=lambda t: theta))
    new = torch.randn(3, 4)
    with torch.no_grad():
        net.weight.copy_(new)
    optimizer.sync_latent()
    assert torch.equal(latent(optimizer), new)
    expected = (1 - theta) * new + theta * BINARY(new)
    torch.testing.assert_close(net.weight.detach(), expected)


def test_add_param_group_with_and_without_projections():
    net, base, optimizer = make(bcgd(0.1))
    extra, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    start = extra.weight.detach().clone()
    optimizer.add_param_group(
        {"params": list(extra.named_parameters("extra")), "lr": 0.5}, {extra.weight: BINARY}
    )
    optimizer.add_param_group({"params": list(plain.named_parameters("plain"))})
    assert [g["lr"] for g in base.param_groups] == [0.1, 0.5, 0.1]
    assert torch.equal(extra.weight, BINARY(start))
    assert len(plain.weight.unique()) == 6
    (extra(net(torch.ones(1, 4))) + plain(net(torch.ones(1, 4)))).sum().backward()
    optimizer.step()
    assert len(extra.weight.abs().unique()) == 1
    assert set(optimizer.state_dict()["qat"]["latent"]) == {"weight", "extra.weight"}


def test_add_param_group_refuses_a_projection_of_a_stranger():
    net, _, optimizer = make()
    extra = nn.Linear(3, 2)
    with pytest.raises(QatError, match="no parameter group"):
        optimizer.add_param_group({"params": [("b", extra.bias)]}, {extra.weight: BINARY})
    before = latent(optimizer)
    step(net, optimizer)  # the refusal left the optimizer usable
    assert not torch.equal(latent(optimizer), before)


def test_sharded_parameters_are_refused():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        p = nn.Parameter(distribute_tensor(torch.randn(4, 4), mesh, [Shard(0)]))
        with pytest.raises(QatError, match="FSDP"):
            QuantOptimizer(torch.optim.SGD([p], lr=0.1), {p: BINARY}, bcgd())
    finally:
        dist.destroy_process_group()


def test_theta_tells_what_the_parameters_hold():
    net, _, optimizer = make(binary_relax(1.0, 4.0, hard_from=2))
    thetas = [optimizer.theta]
    for _ in range(3):
        step(net, optimizer)
        thetas.append(optimizer.theta)
    assert thetas == pytest.approx([0.5, 0.8, 1.0, 1.0])
