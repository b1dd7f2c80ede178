"""Coarse gradient on a probe batch, looked at without a trace in the training.

Two numbers: the share of dead gradients, and how well the coarse gradient agrees with finite
differences of the loss.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat.quantize.activations import activation_quantizers
from qat.quantize.modes import training_mode_without_traces
from qat.quantize.weights import latent_weights

Loss = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Look:
    """What the probe saw.

    Attributes:
        dead: share of the elements at the inputs of activation quantizers whose coarse gradient is
            exactly 0, 0..1; None if no quantizer's input has a gradient.
        cosine: see `gradient_cosine`; None if no weight has a gradient.
    """

    dead: float | None
    cosine: float | None


def look(net: nn.Module, loss: Loss, *, width: float, directions: int, seed: int) -> Look:
    """Measure both; parameters, gradients, buffers, modes and random generators stay as they are.

    Args:
        net: network in its quantized phase.
        loss: loss of `net` on the probe batch.
        width: of the finite differences, relative to the size of each layer's weights.
        directions: number of random directions, >= 1.
        seed: of the directions.
    """
    weights = [p for p in latent_weights(net).values() if p.requires_grad]
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}

    def repeatable() -> Tensor:
        # finite differences want the same dropout masks in every forward pass
        torch.manual_seed(seed)
        return loss()

    with (
        torch.random.fork_rng(devices),
        torch.compiler.set_stance("force_eager"),
        training_mode_without_traces(net),
    ):
        gradients, dead = _coarse_gradients(net, repeatable, weights)
        cosine = None
        if any(float(g.norm()) > 0 for g in gradients):
            cosine = gradient_cosine(
                weights, gradients, repeatable, width=width, directions=directions, seed=seed
            )
    return Look(dead, cosine)


@torch.no_grad()
def gradient_cosine(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    loss: Loss,
    *,
    width: float,
    directions: int,
    seed: int,
) -> float:
    """Cosine of the coarse gradient and finite differences, in the span of the layers' gradients.

    With layer l's weights x_l and coarse gradient g_l, e_l = ||x_l|| g_l / ||g_l|| is a direction
    of the layer's own size, c_l = <g_l, e_l> the slope that the coarse gradient promises along it.
    For K random sign vectors s,

        D_k = (L(x + h sum_l s_kl e_l) - L(x - h sum_l s_kl e_l)) / (2 h)
        cos = sum_k (c . s_k) D_k / sqrt(sum_k (c . s_k)^2 sum_k D_k^2)

    D is the gradient of the loss smoothed over the width h, seen through the same directions: for
    a smooth network and small h the cosine is 1, for a gradient that says nothing about the loss
    it scatters around 0 with deviation 1 / sqrt(K). In general its sampling error is about
    (1 - cos^2) / sqrt(K), so that single values with few directions are noisy and their course
    over a run is what to read. What the loss does outside of the span is not seen: with every layer
    measured in its own size, the cosine with the whole gradient is at most this one.

    Args:
        weights: tensors that `loss` depends on; moved, and put back bit for bit.
        gradients: coarse gradient of each.
        loss: the loss at the present weights.
        width: h, relative: 0.01 moves each layer by a hundredth of its norm. The smoothing has to
            be wide enough for many units to cross a jump and narrow enough for the loss to be
            straight; on ResNet-20 and resnet18 of 1 and 4 bits, in training on digits, 0.003 and
            0.01 agree within 0.07, 0.0001 sees single jumps and 0.1 is too wide.
        directions: K.
        seed: of the sign vectors.

    Returns:
        The cosine in [-1, 1]; 0 if the loss does not change along any direction.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = [w.clone() for w in weights]
    norms = [(float(w.norm()), float(g.norm())) for w, g in zip(weights, gradients, strict=True)]
    promised, found = [], []
    try:
        for _ in range(directions):
            signs = torch.randint(0, 2, (len(weights),), generator=generator) * 2 - 1
            scales = [
                sign * size / slope if slope > 0 else 0.0
                for sign, (size, slope) in zip(signs.tolist(), norms, strict=True)
            ]
            ends = []
            for h in (width, -width):
                for w, start, g, scale in zip(weights, kept, gradients, scales, strict=True):
                    torch.add(start, g, alpha=h * scale, out=w)
                ends.append(float(loss()))
            found.append((ends[0] - ends[1]) / (2 * width))
            # c_l = ||g_l|| ||x_l||, or 0 where there is no gradient
            promised.append(
                sum(s * n[0] * n[1] for s, n in zip(signs.tolist(), norms, strict=True))
            )
    finally:
        for w, start in zip(weights, kept, strict=True):
            w.copy_(start)
    c, d = torch.tensor(promised, dtype=torch.float64), torch.tensor(found, dtype=torch.float64)
    size = float(c.norm() * d.norm())
    return float(c @ d) / size if size > 0 else 0.0


def _coarse_gradients(
    net: nn.Module, loss: Loss, weights: Sequence[Tensor]
) -> tuple[list[Tensor], float | None]:
    """Gradients of the weights, and the share of zeros at the quantizers' inputs."""
    with torch.enable_grad(), _quantizer_inputs(net) as inputs:
        value = loss()
        wanted = [*weights, *inputs]
        found = torch.autograd.grad(value, wanted, allow_unused=True)
    gradients = [
        torch.zeros_like(w) if g is None else g
        for w, g in zip(weights, found[: len(weights)], strict=True)
    ]
    at_inputs = [g for g in found[len(weights) :] if g is not None]
    count = sum(g.numel() for g in at_inputs)
    dead = sum(int((g == 0).sum()) for g in at_inputs)
    return gradients, dead / count if count else None


@contextmanager
def _quantizer_inputs(net: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of the enabled activation quantizers, where they have a gradient.

    They are aliases that the quantizer alone reads, so that their gradient is what comes through
    the quantizer, and nothing of a shortcut around it.
    """
    inputs: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: Tensor = args[0] if args else kwargs["input"]
        if not given.requires_grad:
            return None
        inputs.append(given.view_as(given))
        return (inputs[-1],), {}

    with ExitStack() as hooks:
        for quantizer in activation_quantizers(net).values():
            if quantizer.enabled:
                hooks.callback(quantizer.register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield inputs
