import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qat.distill.tap import FeatureTap
from qat.errors import SpecError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2)
    )


IMAGES = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_maps_are_those_of_the_modules_in_the_order_of_the_names():
    net = network()
    with FeatureTap(net, ["2", "0"]) as tap:
        net(IMAGES)
        later, first = tap.take()
    assert torch.equal(first, net[0](IMAGES))
    assert torch.equal(later, net[2](net[1](first)))


def test_gradients_flow_through_the_maps_and_no_graph_is_kept():
    net = network()
    with FeatureTap(net, ["2"]) as tap:
        net(IMAGES)
        (maps,) = tap.take()
        maps.square().sum().backward()
        assert net[0].weight.grad.abs().sum() > 0
        with pytest.raises(SpecError, match="'2' was not run"):
            tap.take()


def test_hooks_are_gone_afterwards_also_after_an_error():
    net = network()
    with pytest.raises(RuntimeError), FeatureTap(net, ["0"]):
        net(torch.zeros(2, 7, 6, 6))
    assert not any(module._forward_hooks for module in net.modules())


def test_a_wrong_name_lists_what_there_is():
    with pytest.raises(SpecError, match="'layer9' is no module of the network; it holds 0, 1, 2"):
        FeatureTap(network(), ["layer9"])
    with pytest.raises(SpecError, match="'' is no module"):
        FeatureTap(network(), [""])


def test_a_map_that_is_overwritten_in_place_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
    with FeatureTap(net, ["0"]) as tap:
        net(IMAGES)
        with pytest.raises(SpecError, match="'0' is changed in place"):
            tap.take()


def test_inference_mode_can_be_tapped():
    net = network()
    with torch.inference_mode(), FeatureTap(net, ["0"]) as tap:
        net(IMAGES)
        assert tap.take()[0].shape == (2, 3, 6, 6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tapped_network_compiles_once_and_keeps_its_gradients():
    net, plain = network(), network()
    net(IMAGES), plain(IMAGES)
    plain.load_state_dict(net.state_dict())
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    gradients = []
    for model, compiled in ((net, True), (plain, False)):
        with FeatureTap(model, ["1", "2"]) as tap:
            if compiled:
                model.compile(fullgraph=True, backend=backend)
            for _ in range(3):
                model.zero_grad()
                logits = model(IMAGES)
                early, late = tap.take()
                (logits.sum() + early.square().sum() + late.sum()).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert len(traced) == 1
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_under_activation_checkpointing_maps_are_those_of_the_forward_pass():
    gradients = []
    for is_checkpointed in (False, True):
        net = network()
        with FeatureTap(net, ["2"]) as tap:
            logits = (
                checkpoint(net, IMAGES, use_reentrant=False) if is_checkpointed else net(IMAGES)
            )
            (maps,) = tap.take()
            (logits.sum() + maps.square().sum()).backward()
            gradients.append(net[0].weight.grad)
            with pytest.raises(SpecError, match="'2' was not run"):
                tap.take()  # what ran again in the backward pass is no forward pass
    assert torch.equal(*gradients)
