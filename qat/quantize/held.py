"""Parameters of a prepared network in optimizers: each that learns is moved by exactly one."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from qat.errors import QatError
from qat.quantize.loading import quantizer_entries
from qat.quantize.names import plain_key
from qat.quantize.weights import latent_weight, weight_parametrizations


def check_held(
    net: nn.Module, projected: Iterable[Tensor], held: Sequence[Mapping[int, Tensor]]
) -> None:
    """Check that one optimizer moves each quantized weight that is not frozen.

    Args:
        net: prepared network.
        projected: its weights that the rule projects.
        held: of each optimizer, id -> parameter.

    Raises:
        QatError: none holds it, or several do.
    """
    names = {id(p): name for name, p in net.named_parameters()}
    weights = [*projected]
    weights += [latent_weight(net, name) for name, _ in weight_parametrizations(net)]
    for p in weights:
        holders = sum(id(p) in members for members in held)
        if holders > 1 or (holders == 0 and p.requires_grad):
            count = "no optimizer" if holders == 0 else f"{holders} optimizers"
            raise QatError(
                f"the quantized weight {plain_key(names.get(id(p), ''))} is held by {count}, and "
                "one has to move it; give it to one, or freeze it by requires_grad_(False)"
            )


def adopt(net: nn.Module, bases: Sequence[Optimizer]) -> None:
    """Give what quantizers learn, and no optimizer holds, to the one with most of the network.

    So it is where the optimizer was made before the network was prepared, or of parameters that
    were chosen by the kind of their layer.

    Args:
        net: prepared network.
        bases: optimizers that hold parameters of it; the first group of one is added to.
    """
    held = [{id(p) for group in base.param_groups for p in group["params"]} for base in bases]
    own = {id(p) for p in net.parameters()}
    entries = set(quantizer_entries(net))
    group = bases[max(range(len(bases)), key=lambda i: len(own & held[i]))].param_groups[0]
    for name, p in net.named_parameters():
        is_held = any(id(p) in members for members in held)
        if name in entries and p.requires_grad and not is_held:
            group["params"].append(p)
            if "param_names" in group:
                group["param_names"].append(name)
