"""Made weights: quantized where a forward has made them of its parameters, not before.

A weight that is standardised, normalised or masked is no parameter, and no update rule reaches it.
It gets a call site: the quantizer takes the weight that the forward has made, and gives the
multiplication one on its grid. Gradients go through the quantizer (straight through, or the
method's own), and on through what made the weight, into the parameters.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from qat.nn.parametrization import WeightParametrization
from qat.nn.projected_weight import FixedWeight, ProjectedWeight
from qat.quantize.call_sites import add_site, site
from qat.quantize.followed import Observed
from qat.quantize.modes import evaluating
from qat.quantize.plan import Plan, parametrization, weight_quantizer
from qat.quantize.products import trace
from qat.quantize.reach import Made, Reach, example_shape, known_reach


def quantize_made(model: nn.Module, plan: Plan, reach: Reach, example: Tensor) -> None:
    """Put a quantizer behind each weight of the plan that is made; scales start from it."""
    if not plan.made:
        return
    entering = EnteringWeights({name: reach.made[name] for name in plan.made})
    trace(model, example, watch=entering)
    for name, spec in plan.made.items():
        if spec.is_in_graph:
            quantizer: WeightParametrization = parametrization(spec)
            quantizer.start(entering.found[name])
        else:
            quantizer = ProjectedWeight(weight_quantizer(spec))
        made = reach.made[name]
        add_site(model, made.owner, name, made.site, quantizer.to(entering.found[name].device))


def made_quantizer(model: nn.Module, name: str) -> WeightParametrization:
    """What quantizes the made weight of this layer; KeyError if nothing does."""
    reach = known_reach(model)
    if reach is None:
        raise KeyError(name)
    made = reach.made[name]
    return cast(WeightParametrization, site(model, made.owner, made.site))


def made_weights(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """The quantized weights that are made, as they are before their quantizers, by layer.

    The network is run once for them, on images of nothing.
    """
    shape = example_shape(model)
    if not plan.made or shape is None:
        return {}
    found: dict[str, Tensor] = {}
    handles = []
    for name in plan.made:

        def keep(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            found[name] = args[0].detach().clone()

        handles.append(made_quantizer(model, name).register_forward_pre_hook(keep))
    device = next(model.parameters()).device
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(2, *shape, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def start_made(model: nn.Module, plan: Plan) -> None:
    """Start what the quantizers of made weights learn from these weights as they are now."""
    if any(spec.is_in_graph for spec in plan.made.values()):
        for name, weight in made_weights(model, plan).items():
            made_quantizer(model, name).start(weight)


@torch.no_grad()
def fix_weight(model: nn.Module, name: str, weight: Tensor) -> None:
    """Let a layer multiply by this weight for good, whatever its forward makes.

    The parameters that it alone is made of are set to the weight where they have its shape: what
    they were is not known any more.
    """
    reach = known_reach(model)
    assert reach is not None  # it has a name in the plan
    made = reach.made[name]
    fixed = FixedWeight(weight.clone(), made_quantizer(model, name))
    add_site(model, made.owner, name, made.site, fixed)
    parameters = dict(model.named_parameters())
    for parameter in (parameters[full] for full in made.own):
        if parameter.shape == weight.shape:
            parameter.copy_(weight)


class EnteringWeights:
    """The weights that some layers make, as they enter their products, by layer.

    Args:
        made: name of each of them -> its weight; of others nothing is kept.
    """

    def __init__(self, made: Mapping[str, Made]) -> None:
        self._made = made
        self.found: dict[str, Tensor] = {}

    def __call__(self, product: Observed) -> None:
        """Told of each product by `trace`."""
        made, weight = self._made.get(product.module), product.weight
        if made is None or weight is None or not weight.through:
            return
        if made.parameters & weight.parameters and product.weight_tensor is not None:
            self.found[product.module] = product.weight_tensor.detach().clone()
