"""QuantOptimizer: runs an update rule around any torch optimizer."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.optim import Optimizer

from qat.errors import CheckpointError, QatError, SpecError, expect
from qat.optim.rule import UpdateRule
from qat.optim.together import Projection as Projection
from qat.optim.together import blended, copy_all, project, shortened, steps_in_place

Shown = Literal["forward", "hard", "latent"]

STATE_VERSION = 1


@dataclass(slots=True)
class _Position:
    """What changes over time; one object, because Lightning's wrapper copies plain attributes."""

    completed: int = 0
    shown: Shown = "forward"
    is_stepping: bool = False


class QuantOptimizer(Optimizer):
    """A torch optimizer whose projected parameters follow an `UpdateRule`.

    Between steps the parameters hold the forward weights x; the latent weights w live here. One
    step, after t completed ones, is

        closure()                                 gradients at x
        p     <- (1 - rho_t) w + rho_t x          blend
        p     <- base optimizer's step            w' with momentum, decay, Adam ...
        w     <- p
        p     <- (1 - theta_{t+1}) w + theta_{t+1} Q(w)

    Parameters without a gradient keep their latent weights; so do frozen ones, which show what the
    rule makes of them (their hard values, unless it relaxes) and need be in no group. Parameters
    without a projection are the base optimizer's alone. A group may carry `grad_clip`: its
    gradients are clamped to +-grad_clip before the base step (steps of activation quantizers use
    it, where they have a group of their own).

    Args:
        base: any torch optimizer whose step needs no argument (LBFGS wants a closure).
        projections: parameter -> nearest grid point of a latent weight (a pure function).
        rule: schedules of rho and theta.
        slowed: steps of activation quantizers that share a group with weights; their gradients are
            clamped to +-1 / step_rate, and of their moves the fraction `step_rate` is made.
        step_rate: of these, in (0, 1].

    Raises:
        QatError: a projected parameter that learns is unknown to `base`, or one is sharded or of
            half precision; or `base` needs a closure.
        SpecError: an argument is something else or out of range.
    """

    def __init__(
        self,
        base: Optimizer,
        projections: Mapping[Tensor, Projection],
        rule: UpdateRule,
        *,
        slowed: Collection[Tensor] = (),
        step_rate: float = 1.0,
    ) -> None:
        expect(base, Optimizer, "base", "give a torch optimizer, e.g. torch.optim.SGD(...)")
        expect(projections, Mapping, "projections", "give weight_projections(net, spec)")
        expect(rule, UpdateRule, "rule", "give e.g. bcgd(), with its brackets")
        if not 0 < step_rate <= 1:
            raise SpecError(f"step_rate must be above 0 and at most 1, got {step_rate!r}")
        _refuse_closures(base)
        self._base = base
        self._steps_in_place = steps_in_place(base)
        # torch's own way to make an optimizer's hooks without giving it parameters a second time
        super().__setstate__({})
        self.rule = rule
        self._slowed, self._step_rate = list(slowed), step_rate
        self._projections = dict(projections)
        self._check_projections(self._projections)
        self._latent = {p: p.detach().clone() for p in self._projections}
        self._at = _Position()
        self._write_forward()

    # -- live views of the base optimizer, so that schedulers and scalers see one truth ----------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's groups."""
        return self._base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state."""
        return self._base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base optimizer's defaults."""
        return self._base.defaults

    @property
    def completed_steps(self) -> int:
        """Number of completed steps, the argument of the rule's schedules."""
        return self._at.completed

    @property
    def shown(self) -> Shown:
        """What the parameters hold now: forward weights, or inside a context others."""
        return self._at.shown

    @property
    def is_stepping(self) -> bool:
        """Whether the base optimizer is asked for its step right now."""
        return self._at.is_stepping

    @property
    def theta(self) -> float:
        """Relaxation of the forward weights now: 0 float .. 1 on the grid."""
        return self.rule.relax(self._at.completed)

    def follow(self, rule: UpdateRule) -> None:
        """Take another rule from here on; the parameters hold its forward weights at once."""
        self._require_forward("follow")
        self.rule = rule
        self._write_forward()

    def latent_pairs(self) -> list[tuple[Tensor, Projection]]:
        """Latent weights (the tensors themselves, for reading) and their projections."""
        return [(self._latent[p], projection) for p, projection in self._projections.items()]

    def latent_weights_by_parameter(self) -> dict[Tensor, Tensor]:
        """Projected parameter -> its latent weights (the tensors themselves, for reading)."""
        return dict(self._latent)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        self._base.zero_grad(set_to_none)

    def add_param_group(
        self,
        param_group: dict[str, Any],
        projections: Mapping[Tensor, Projection] | None = None,
    ) -> None:
        """Add a group to the base optimizer, with projections for those of its parameters named."""
        self._require_forward("add_param_group")
        new = dict(projections or {})
        self._base.add_param_group(param_group)
        self._check_projections(new)
        self._projections |= new
        self._latent |= {p: p.detach().clone() for p in new}
        self._write_forward(new)

    # -- the step ---------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; see the class. Returns what the closure returns.

        Raises:
            QatError: called inside `hard_weights` or `latent_weights`.
        """
        self._require_forward("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = {p: self._latent[p] for p in self._projections if p.grad is not None}
        self._clip_gradients()
        rho = self.rule.blend(self._at.completed)
        try:
            slowed = [p for p in self._slowed if p.grad is not None]
            with (
                blended(moved, rho, in_place=self._steps_in_place),
                shortened(slowed, self._step_rate),
            ):
                self._at.is_stepping = True
                self._base.step()
        except BaseException:
            self._write_forward()  # never leave float weights behind in the network
            raise
        finally:
            self._at.is_stepping = False
        self._at.completed += 1
        self._write_forward()
        return loss

    def _require_forward(self, name: str) -> None:
        if self._at.shown != "forward":
            raise QatError(
                f"{name}() inside {self._at.shown}_weights(): the parameters do not hold the "
                "forward weights there; leave the context first"
            )

    def _clip_gradients(self) -> None:
        for group in self.param_groups:
            limit = group.get("grad_clip")
            if limit is not None:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.clamp_(-limit, limit)
        for p in self._slowed:
            if p.grad is not None:
                p.grad.clamp_(-1 / self._step_rate, 1 / self._step_rate)

    @torch.no_grad()
    def _write_forward(self, which: Iterable[Tensor] | None = None) -> None:
        """Latent weights -> forward weights in the parameters."""
        parameters = list(self._projections if which is None else which)
        latent = [self._latent[p] for p in parameters]
        theta = self.theta
        if theta == 0:
            copy_all(parameters, latent)
            return
        self._project(parameters)
        if theta != 1 and parameters:
            torch._foreach_lerp_(parameters, latent, 1 - theta)

    def _project(self, parameters: Iterable[Tensor]) -> None:
        """Q(w) of the latent weights into the parameters."""
        project({p: (self._projections[p], self._latent[p]) for p in parameters})

    # -- looking at other weights -----------------------------------------------------------------

    @contextmanager
    def hard_weights(self) -> Iterator[None]:
        """Inside, the parameters hold Q(w), whatever theta is; `step` is refused."""
        with self._showing("hard"):
            if self.theta != 1:
                with torch.no_grad():
                    self._project(self._projections)
            yield

    @contextmanager
    def latent_weights(self) -> Iterator[None]:
        """Inside, the parameters hold the latent weights w; `step` is refused."""
        with self._showing("latent"):
            with torch.no_grad():
                copy_all(self._projections, self._latent.values())
            yield

    @contextmanager
    def _showing(self, shown: Shown) -> Iterator[None]:
        if self._at.shown != "forward":
            raise QatError(f"{shown}_weights() inside {self._at.shown}_weights(); leave it first")
        self._at.shown = shown
        try:
            yield
        finally:
            self._at.shown = "forward"
            self._write_forward()

    def sync_latent(self) -> None:
        """Take the parameters as the new latent weights, after they were changed by hand.

        Raises:
            QatError: called inside `hard_weights` or `latent_weights`.
        """
        self._require_forward("sync_latent")
        with torch.no_grad():
            copy_all(self._latent.values(), self._projections)
        self._write_forward()

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under "qat" the version, step and latent weights.

        Latents are keyed by parameter name where the base optimizer knows names (it was built from
        `named_parameters()`), else by the parameter's position in the groups; a frozen one that is
        in no group by "frozen." and its position among these.
        """
        keys = self._keys()
        latent = {keys[p]: w for p, w in self._latent.items()}
        own = {"version": STATE_VERSION, "step": self._at.completed, "latent": latent}
        return {**self._base.state_dict(), "qat": own}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict()`; every projected parameter is rewritten from its latent weights.

        Raises:
            CheckpointError: no "qat" part, another version, or other parameters.
        """
        self._require_forward("load_state_dict")
        rest = dict(state_dict)
        own = rest.pop("qat", None)
        if own is None:
            raise CheckpointError("optimizer state has no 'qat' part: saved by a plain optimizer")
        latent = self._checked_latent(own)
        try:
            self._base.load_state_dict(rest)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"the base optimizer's state does not fit: {error}") from error
        copy_all(self._latent.values(), (latent[p] for p in self._latent))
        self._at.completed = int(own["step"])
        self._write_forward()

    def _checked_latent(self, own: Mapping[str, Any]) -> dict[Tensor, Tensor]:
        """Latent weights of the "qat" part of a state; raises CheckpointError."""
        absent = {"version", "step", "latent"} - set(own)
        if absent:
            raise CheckpointError(f"the 'qat' part of the optimizer state lacks {sorted(absent)}")
        if own["version"] != STATE_VERSION:
            raise CheckpointError(
                f"optimizer state has version {own['version']}, this qat reads {STATE_VERSION}"
            )
        keys, given = self._keys(), own["latent"]
        wanted, found = {keys[p] for p in self._latent}, set(given)
        if wanted != found:
            raise CheckpointError(
                f"latent weights differ: missing {sorted(map(str, wanted - found))}, "
                f"unexpected {sorted(map(str, found - wanted))}"
            )
        for p in self._latent:
            if given[keys[p]].shape != p.shape:
                raise CheckpointError(
                    f"latent weight {keys[p]} has shape {tuple(given[keys[p]].shape)}, the network "
                    f"wants {tuple(p.shape)}"
                )
        return {p: given[keys[p]] for p in self._latent}

    def _keys(self) -> dict[Tensor, str | int]:
        keys: dict[Tensor, str | int] = {}
        for group in self.param_groups:
            names = group.get("param_names", range(len(keys), len(keys) + len(group["params"])))
            keys |= dict(zip(group["params"], names, strict=True))
        frozen = [p for p in self._projections if p not in keys]
        return keys | {p: f"frozen.{number}" for number, p in enumerate(frozen)}

    def _check_projections(self, projections: Iterable[Tensor]) -> None:
        known = {p for group in self.param_groups for p in group["params"]}
        for p in projections:
            if p not in known and p.requires_grad:
                raise QatError(
                    f"a projected parameter of shape {tuple(p.shape)} is in no parameter group of "
                    "the base optimizer; give the base optimizer all parameters"
                )
            if p.dtype in (torch.float16, torch.bfloat16):
                raise QatError(
                    f"a projected parameter is {p.dtype}: latent weights would lose most updates; "
                    "keep parameters in float32 and use mixed precision"
                )
            if hasattr(p, "placements"):  # DTensor: a scale needs a reduction over all shards
                raise QatError(
                    "sharded parameters (FSDP, DTensor) are not supported: a scale needs the whole "
                    "tensor; train with plain or DDP parameters"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError("QuantOptimizer is tied to its parameters; copy its state_dict() instead")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("QuantOptimizer cannot be pickled; save its state_dict() instead")


def _refuse_closures(base: Optimizer) -> None:
    """Refuse an optimizer that asks for the loss again while it moves: blending is done once."""
    # of the class: schedulers put a function of their own in front of an optimizer's step
    _, *parameters = inspect.signature(type(base).step).parameters.values()
    for parameter in parameters:
        is_wanted = parameter.default is parameter.empty
        if is_wanted and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            kind = type(base).__name__
            raise QatError(
                f"{kind}.step needs a {parameter.name}, but a step of QuantOptimizer has one "
                "gradient; use SGD, AdamW or another that takes the gradients there are"
            )
