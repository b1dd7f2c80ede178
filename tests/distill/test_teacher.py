import torch
from torch import nn

from qat.distill.teacher import Teacher, state_hash

IMAGES = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)
    )


def test_a_teacher_is_frozen_and_asked_without_gradients():
    net = network().train()
    before = state_hash(net)
    teacher = Teacher(net, layers=["2"])
    answer = teacher.ask(IMAGES.clone().requires_grad_())
    assert not answer.logits.requires_grad
    assert not answer.maps[0].requires_grad
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.training
    assert state_hash(net) == before == teacher.sha256
    assert torch.equal(answer.logits, network().eval()(IMAGES))
    assert answer.maps[0].shape == (4, 3, 4, 4)


def test_asking_is_one_forward_pass():
    net, calls = network(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    Teacher(net, layers=["0", "2"]).ask(IMAGES)
    assert len(calls) == 1


def test_a_module_that_holds_a_teacher_does_not_own_it():
    student = nn.Linear(2, 2)
    student.teacher = Teacher(network())
    assert set(student.state_dict()) == {"weight", "bias"}
    assert len(list(student.parameters())) == 2
    student.train()
    assert not student.teacher.net.training


def test_the_hash_tells_weights_buffers_and_names_apart():
    same, other = state_hash(network()), state_hash(network(seed=1))
    assert state_hash(network()) == same != other
    moved = network()
    moved[1].running_mean[0] += 1e-6
    assert state_hash(moved) != same
    assert state_hash(nn.ModuleDict({"a": nn.Linear(1, 1)})) != state_hash(
        nn.ModuleDict({"b": nn.Linear(1, 1)})
    )
