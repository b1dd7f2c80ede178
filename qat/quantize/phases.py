"""Phases of a network in training: float warm start, switch, quantized phase, whatever the loop."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from qat.errors import CheckpointError, QatError
from qat.optim.quant_optimizer import Projection, QuantOptimizer
from qat.optim.rule import UpdateRule, rule_from_numbers
from qat.quantize.activations import activation_quantizers
from qat.quantize.averaged import AveragedWeights
from qat.quantize.calibrate import start_steps
from qat.quantize.held import adopt, check_held
from qat.quantize.plan import Plan, project_weights, resolve, weight_projections
from qat.quantize.preparation_version import check_preparation, preparation_of
from qat.quantize.prepare import enable_quantizers, set_progress
from qat.spec.presets import differences
from qat.spec.quant import QuantSpec

Images = Callable[[], Iterable[Tensor]]


@dataclass(slots=True)
class _Clock:
    """An optimizer and its lengths, in its own steps."""

    optimizer: QuantOptimizer
    warm_steps: int
    steps: int

    @property
    def is_warm(self) -> bool:
        return self.optimizer.completed_steps >= self.warm_steps


class Phases:
    """The phases of a prepared network, with the optimizers that move it.

    During the warm steps the network is the float one: activations as ReLU, weights latent. At the
    switch what the quantizers learn is started from images, and optimizer state begins anew, for
    momentum and moments of the float phase point nowhere on the grid. From then on the parameters
    hold forward weights.

    Args:
        net: prepared network.
        spec: the options it was prepared with, or its plan.
        measures_steps: False keeps the steps that were loaded with the weights.
        ema_decay: of an average of the quantized phase, which is what is judged; None for none.

    Attributes:
        is_quantized: whether the switch has been.
        average: of the quantized phase, None for none.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: QuantSpec | Plan,
        *,
        measures_steps: bool = True,
        ema_decay: float | None = None,
    ) -> None:
        self.net = net
        self.plan = resolve(net, spec)
        self.measures_steps = measures_steps
        self.is_quantized = False
        self.average = None if ema_decay is None else AveragedWeights(net, ema_decay)
        self._clocks: list[_Clock] = []
        self._hooks: list[RemovableHandle] = []

    # -- optimizers -------------------------------------------------------------------------------

    @property
    def optimizers(self) -> list[QuantOptimizer]:
        """Those that move the network, in the order in which they were given."""
        return [clock.optimizer for clock in self._clocks]

    @property
    def theta(self) -> float:
        """Relaxation of the forward weights now, 0 float .. 1 on the grid; the least of several."""
        return min((o.theta for o in self.optimizers), default=0.0) if self.is_quantized else 0.0

    @property
    def is_hard(self) -> bool:
        """Whether all is quantized that is to be, with the forward weights on their grids."""
        return self.is_quantized and (self.plan.spec.rule.name == "float_only" or self.theta == 1)

    def wrap(
        self, bases: Sequence[Optimizer], steps: Sequence[int], warm_steps: Sequence[int]
    ) -> list[Optimizer]:
        """Let optimizers follow the rule: each that holds a parameter of the network is wrapped.

        Steps of activation quantizers that share a group with weights move by `step_rate` of its
        learning rate; in a group of their own, as `parameter_groups` makes it, they keep theirs.

        Args:
            bases: all optimizers that move the network; others may be among them.
            steps: optimizer steps of the whole training, of each.
            warm_steps: of these float ones at the start; more than that where others say when the
                warm start is over.

        Returns:
            For each base its `QuantOptimizer`, or itself where it moves other networks alone.

        Raises:
            QatError: a quantized weight learns in none of them, two share it, or as
                `QuantOptimizer`.
        """
        self._leave()
        own = {id(p) for p in self.net.parameters()}
        projections = weight_projections(self.net, self.plan)
        held = [{id(p): p for g in base.param_groups for p in g["params"]} for base in bases]
        concerned = [place for place, members in enumerate(held) if own & members.keys()]
        if not concerned:
            raise QatError(
                "no optimizer holds a parameter of the network that is to be quantized; give its "
                "parameters to one"
            )
        check_held(self.net, projections, [held[place] for place in concerned])
        adopt(self.net, [bases[place] for place in concerned])
        wrapped = list(bases)
        for place in concerned:
            # a frozen weight may be in none: the first shows what the rule makes of it
            is_first = place == concerned[0]
            mine = {
                p: projection
                for p, projection in projections.items()
                if id(p) in held[place] or (is_first and not any(id(p) in h for h in held))
            }
            warm, base = warm_steps[place], bases[place]
            optimizer = self._wrapped(base, mine, self._rule(max(0, steps[place] - warm), warm))
            self._clocks.append(_Clock(optimizer, warm, steps[place]))
            self._hooks.append(base.register_step_pre_hook(_refusing(optimizer)))
            if self.average is not None and place == concerned[-1]:
                self._hooks.append(optimizer.register_step_post_hook(self._average_step))
            wrapped[place] = optimizer
        return wrapped

    def _rule(self, steps: int, warm: int) -> UpdateRule:
        number = self.plan.spec.rule
        return rule_from_numbers(
            number.name,
            steps,
            rho=number.rho,
            initial=number.initial,
            final=number.final,
            hard_from=number.hard_from,
        ).after_warm_start(warm)

    def _wrapped(
        self, base: Optimizer, projections: Mapping[Tensor, Projection], rule: UpdateRule
    ) -> QuantOptimizer:
        if isinstance(base, QuantOptimizer):
            raise QatError(
                "an optimizer follows a rule already; quantize all that it moves by one callback, "
                "or wrap it once"
            )
        quantizers = activation_quantizers(self.net).values()
        steps = {id(q.step) for q in quantizers if isinstance(getattr(q, "step", None), Tensor)}
        slowed = [
            p
            for group in base.param_groups
            if group.get("group") != "step"
            for p in group["params"]
            if id(p) in steps
        ]
        rate = self.plan.spec.activation.step_rate
        return QuantOptimizer(
            base,
            projections,
            rule,
            slowed=slowed if rate > 0 else (),
            step_rate=rate if rate > 0 else 1.0,
        )

    # -- the switch -------------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether the next `advance` switches, by the optimizers' own clocks."""
        # those of others also count steps that a gradient scaler skipped
        return not self.is_quantized and any(clock.is_warm for clock in self._clocks)

    def advance(self, images: Images, *, is_due: bool | None = None) -> bool:
        """Come to the phase of the next step; to be called before each, or after the last one.

        Args:
            images: gives training images on the network's device, to start steps from; called at
                the switch alone.
            is_due: whether the warm start is over; None asks the optimizers' own clocks.

        Returns:
            Whether the switch was now.
        """
        switches = self.is_due if is_due is None else is_due and not self.is_quantized
        if switches:
            self._switch(images)
        if self.is_quantized and self._clocks:
            set_progress(self.net, self._progress())
        return switches

    def _switch(self, images: Images) -> None:
        self.is_quantized = True
        if self.measures_steps:
            start_steps(self.net, self.plan, images())
        enable_quantizers(self.net, True)
        for clock in self._clocks:
            clock.optimizer.state.clear()
            if not clock.is_warm:  # one that steps more rarely than the first
                self._begin_here(clock, clock.optimizer.completed_steps)
        self.begin_average()

    def begin_average(self) -> None:
        """Start the average, if there is one, from what the network holds now."""
        if self.average is not None:
            self.average.begin(self._latent())

    def _average_step(self, *_: object) -> None:
        if self.average is not None and self.average.has_begun:
            self.average.update(self._latent())

    def _begin_here(self, clock: _Clock, warm_steps: int) -> None:
        clock.warm_steps = warm_steps
        clock.optimizer.follow(self._rule(max(0, clock.steps - warm_steps), warm_steps))

    def _progress(self) -> float:
        """Place in the quantized phase by the optimizer that is furthest, 0 .. 1."""
        places = (
            (c.optimizer.completed_steps - c.warm_steps) / max(1, c.steps - c.warm_steps)
            for c in self._clocks
        )
        return min(1.0, max(0.0, *places))

    def enable(self) -> None:
        """Let quantizers act or be what they replaced, as the phase asks."""
        enable_quantizers(self.net, self.is_quantized)

    def let_go(self, *, is_quantized: bool) -> None:
        """Leave the optimizers: what the network holds from now on is what is judged.

        Args:
            is_quantized: whether these are weights of the quantized phase.
        """
        self._leave()
        self.is_quantized = is_quantized
        if self.average is not None:
            self.average.forget()

    def _leave(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._clocks, self._hooks = [], []

    def settle(self) -> None:
        """Let the network hold what is judged, where no optimizer moves it."""
        if self.average is not None and self.average.has_begun:
            self.average.settle()
        if self.is_quantized:
            project_weights(self.net, self.plan)

    def forget(self) -> None:
        """Show the latent weights and begin anew: a further training starts from what it found."""
        with torch.no_grad():
            for optimizer in self.optimizers:
                for parameter, latent in optimizer.latent_weights_by_parameter().items():
                    parameter.copy_(latent)
        self.let_go(is_quantized=False)

    # -- weights to look at -----------------------------------------------------------------------

    @contextmanager
    def judged_weights(self) -> Iterator[None]:
        """Inside, the parameters hold what an evaluation sees: hard weights, float ones before.

        It may be entered inside of itself.
        """
        wanted = "hard" if self.is_quantized else "latent"
        with ExitStack() as shown:
            for optimizer in self.optimizers:
                if optimizer.shown != wanted:
                    shown.enter_context(
                        optimizer.hard_weights()
                        if self.is_quantized
                        else optimizer.latent_weights()
                    )
            average = self.average
            if average is not None and average.has_begun and not average.is_shown:
                shown.enter_context(average.shown(weight_projections(self.net, self.plan)))
            yield

    # -- state ------------------------------------------------------------------------------------

    def latent_entries(self, module: nn.Module) -> dict[str, Tensor]:
        """Entries of a module's state dict -> latent weights (the optimizers' own tensors).

        Args:
            module: the network, or one that holds it.
        """
        latent = self._latent()
        names = module.named_parameters(remove_duplicate=False)
        return {name: latent[p] for name, p in names if p in latent}

    def _latent(self) -> dict[Tensor, Tensor]:
        """Projected parameter -> its latent weights."""
        latent: dict[Tensor, Tensor] = {}
        for optimizer in self.optimizers:
            latent |= optimizer.latent_weights_by_parameter()
        return latent

    @torch.no_grad()
    def hard_entries(self, module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Entries of a state dict of latent weights -> what an evaluation has to see of them.

        Args:
            module: the network, or one that holds it.
            state: of `module`.
        """
        projections = weight_projections(self.net, self.plan)
        names = module.named_parameters(remove_duplicate=False)
        return {name: projections[p](state[name]) for name, p in names if p in projections}

    def state_dict(self) -> dict[str, Any]:
        """The phase and the options: whether the switch has been, after which optimizers' steps."""
        return {
            "is_quantized": self.is_quantized,
            "warm_steps": [clock.warm_steps for clock in self._clocks],
            "spec": dataclasses.asdict(self.plan.spec),
            "preparation": preparation_of(self.net),
            **({} if self.average is None else {"ema": self.average.state_dict()}),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state of another quantization than the network's.

        Raises:
            CheckpointError: the options or what the preparation makes of the network differ.
        """
        check_preparation(self.net, state["preparation"])
        then = QuantSpec.from_dict(state["spec"])
        if then != self.plan.spec:
            raise CheckpointError(
                f"the state was trained with other options ({differences(then, self.plan.spec)}); "
                "give those, or begin anew from its weights"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`, after `wrap` or without optimizers; these restore their own.

        Raises:
            CheckpointError: as `check_state`, or another number of optimizers moves it now.
        """
        self.check_state(state)
        self.is_quantized = bool(state["is_quantized"])
        warm: list[int] = list(state["warm_steps"])
        if self._clocks and warm and len(self._clocks) != len(warm):
            raise CheckpointError(
                f"{len(warm)} optimizers moved the network when the state was saved, now "
                f"{len(self._clocks)} do; give it the same ones"
            )
        if self.is_quantized and self._clocks and warm:
            for clock, steps in zip(self._clocks, warm, strict=True):
                if steps != clock.warm_steps:
                    self._begin_here(clock, steps)
        if self.average is not None and "ema" in state:
            self.average.load_state_dict(state["ema"])
        self.enable()


def _refusing(optimizer: QuantOptimizer) -> Callable[..., None]:
    """A hook of a base optimizer that lets it step for its wrapper alone."""

    def refuse(*_: object) -> None:
        if not optimizer.is_stepping:
            raise QatError(
                "the optimizer was stepped past the rule that it follows, which moves float "
                "weights behind the forward ones; step the wrapped one (in a LightningModule what "
                "self.optimizers() gives)"
            )

    return refuse
