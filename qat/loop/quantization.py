"""Quantization of a network in a plain loop: prepare, train, evaluate, audit, save, export."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from qat.errors import CheckpointError, SpecError
from qat.export.integer.graph import check_exact_form
from qat.export.integer.trace import network_graph
from qat.export.packed.convert import Converted, convert
from qat.export.packed.network import save_packed
from qat.nn.activation import QuantizedActivation
from qat.nn.parametrization import WeightParametrization
from qat.quantize.audit import Audit, audit
from qat.quantize.loading import load_weights
from qat.quantize.modes import evaluating
from qat.quantize.phases import Phases
from qat.quantize.plan import Plan
from qat.quantize.prepare import prepare
from qat.spec.extras import require_onnx, require_onnxscript
from qat.spec.header import Header
from qat.spec.presets import quantization
from qat.spec.quant import QuantSpec
from qat.storage.atomic import replacing

STATE_VERSION = 1

_PARTS = {"phase", "network", "optimizers"}
_SHOWN = 2  # images of an example that are run to see what a network does

Form = Literal["faithful", "general"]


class Quantization:
    """Quantization-aware training of a network in a loop of one's own.

        training = Quantization(net, "bcgd_w1a4", example=images)
        optimizer = training.wrap(torch.optim.SGD(net.parameters(), lr=0.02), steps=1000)

    From here on the loop is the one of a float network. `net` is prepared in place: its ReLUs are
    quantizers, its weights plain parameters that hold forward weights between steps.

    Args:
        net: any float network.
        options: what to quantize: a name as `quant=` of the command takes it ("bcgd_w1a4"), a
            `QuantSpec`, or the config group `quant` as a mapping.
        example: images (N, C, H, W); what enters each product is seen on them, and steps that are
            measured start from them, so that a training batch is the best choice.
        ema_decay: in (0, 1): what is judged and exported is a moving average of the quantized
            phase, on its grids; None for none.

    Attributes:
        net: as given, prepared.
        phases: float warm start, switch and quantized phase.

    Raises:
        SpecError: as `prepare`, or the options are wrong.
    """

    def __init__(
        self,
        net: nn.Module,
        options: str | Mapping[str, Any] | QuantSpec,
        *,
        example: Tensor,
        ema_decay: float | None = None,
    ) -> None:
        spec = quantization(options)
        prepare(net, spec, example=example[:_SHOWN])
        self.net = net
        self.phases = Phases(net, spec, ema_decay=ema_decay)
        self._example = example.detach()
        self._images: Iterable[Tensor] | None = None

    @property
    def spec(self) -> QuantSpec:
        """The options."""
        return self.phases.plan.spec

    @property
    def plan(self) -> Plan:
        """What becomes of each weight."""
        return self.phases.plan

    @property
    def is_quantized(self) -> bool:
        """Whether the float warm start is over."""
        return self.phases.is_quantized

    def example(self, count: int | None = None) -> Tensor:
        """The first images of the example, where the network is and in its dtype."""
        return like(self._example[:count], self.net)

    # -- training ---------------------------------------------------------------------------------

    def wrap(
        self,
        optimizer: Optimizer,
        *,
        steps: int | None = None,
        warm_steps: int = 0,
        images: Iterable[Tensor] | None = None,
    ) -> Optimizer:
        """The optimizer to step in place of the given one: it lets the weights follow the rule.

        The switch to the quantized phase is made at once, or with the last warm step.

        Args:
            optimizer: of torch, with all parameters of the network that learn.
            steps: optimizer steps of the whole training; needed by binary_relax, by derivatives
                that are scheduled, and for a warm start.
            warm_steps: float ones at the start.
            images: training batches (N, C, H, W) on the network's device, from which measured steps
                start; None takes the example.

        Raises:
            QatError: as `Phases.wrap`.
            SpecError: a number is out of range, or `steps` is missing.
        """
        if steps is not None and steps < 1:
            raise SpecError(f"wrap(steps=...) must be >= 1, got {steps!r}")
        if steps is None and (warm_steps or self._is_scheduled()):
            raise SpecError(
                "wrap(...) needs steps=, the optimizer steps of the whole training: "
                + ("its warm start is" if warm_steps else "the method's schedule is")
                + " a part of them"
            )
        if warm_steps < 0 or (steps is not None and not warm_steps < steps):
            raise SpecError(
                f"warm_steps must be 0 or more and below steps, got {warm_steps} of {steps}"
            )
        self._images = images
        self.phases.forget()
        (wrapped,) = self.phases.wrap([optimizer], [steps or 1], [warm_steps])
        self.phases.enable()
        self._advance()
        wrapped.register_step_post_hook(self._advance)
        return wrapped

    def _advance(self, *_: object) -> None:
        self.phases.advance(lambda: (self.example(),) if self._images is None else self._images)

    def _is_scheduled(self) -> bool:
        kinds = (QuantizedActivation, WeightParametrization)
        scheduled = (m for m in self.net.modules() if isinstance(m, kinds))
        return self.spec.rule.name == "binary_relax" or any(
            m.sharpness is not None for m in scheduled
        )

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Inside, the network as it is judged: hard weights (float ones in the warm start), eval.

        Gives the network; afterwards it trains on as before.
        """
        with self.phases.judged_weights(), evaluating(self.net):
            yield self.net

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a training needs to go on bit for bit: weights, optimizer, place, phase."""
        network = self.net.state_dict() | self.phases.latent_entries(self.net)
        return {
            "version": STATE_VERSION,
            "phase": self.phases.state_dict(),
            "network": network,
            "optimizers": [optimizer.state_dict() for optimizer in self.phases.optimizers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, after `wrap`; without one the network gets hard weights.

        Raises:
            CheckpointError: of another version, or of another network or optimizer.
        """
        if state.get("version") != STATE_VERSION or not state.keys() >= _PARTS:
            raise CheckpointError(
                f"the state has version {state.get('version')!r} and the parts "
                f"{', '.join(sorted(_PARTS & state.keys())) or 'of none'}; this qat reads version "
                f"{STATE_VERSION} with {', '.join(sorted(_PARTS))}"
            )
        before = copy.deepcopy(self.state_dict())
        try:
            self._load(state)
        except Exception:
            self._load(before)  # whole or not at all
            raise

    def _load(self, state: Mapping[str, Any]) -> None:
        self.phases.check_state(state["phase"])
        load_weights(self.net, state["network"])
        self.phases.load_state_dict(state["phase"])
        if not self.phases.optimizers:
            self.phases.settle()
        for optimizer, own in zip(self.phases.optimizers, state["optimizers"], strict=False):
            optimizer.load_state_dict(own)

    # -- results ----------------------------------------------------------------------------------

    def audit(self) -> Audit:
        """Every layer on its grid, with its bits and cost, as it is judged now.

        Raises:
            NotOnGridError: a value is off its grid.
        """
        with self.evaluating():
            return audit(self.net, self.plan, self.example(_SHOWN))

    def convert(self) -> Converted:
        """Codes and scales of the hard weights, and what stays float."""
        with self.evaluating():
            return convert(self.net, self.plan)

    def save_packed(self, path: str | Path, header: Header | None = None) -> int:
        """Write the packed file; returns its size in bytes. `load_packed(path, model=...)` opens.

        Args:
            path: of the file, by custom *.safetensors.
            header: what the file says of itself; None says the options.

        Raises:
            CheckpointError: it cannot be written.
        """
        return save_packed(path, self.convert(), header or Header(quant=self.spec))

    def save_onnx(self, path: str | Path) -> Form:
        """Write an ONNX file; needs the extra `export`.

        Args:
            path: of the file.

        Returns:
            "faithful" if the file computes in integers, as integer kernels want it; "general" where
            the network has no such form: integers in front of float operators.

        Raises:
            SpecError: the network has neither form.
        """
        require_onnx()  # in an extra, so that what imports it waits until it is asked for
        from qat.export.onnx.general import general_model
        from qat.export.onnx.model import onnx_model

        converted, example = self.convert(), self.example(_SHOWN)
        form: Form = "faithful"
        with self.evaluating():
            try:
                graph = network_graph(self.net, converted, example)
                check_exact_form(graph)
                model = onnx_model(graph)
            except SpecError:
                require_onnxscript()
                form, model = "general", general_model(self.net, converted, example)
        with replacing(Path(path)) as file:
            file.write(model.SerializeToString())
        return form


def like(images: Tensor, net: nn.Module) -> Tensor:
    """Images on the device of a network, and in the dtype of its parameters if they are floats."""
    own = next((p for p in net.parameters() if p.is_floating_point()), images)
    return images.to(own.device, own.dtype if images.is_floating_point() else images.dtype)
