"""Run options: the whole config that `python train.py` accepts, typed; standard library only."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qat.errors import SpecError
from qat.names import Backward, IntegerForward, MemoryFormat, Saved
from qat.spec.data import DataSpec
from qat.spec.distill import DistillSpec
from qat.spec.initial import InitSpec, check_start
from qat.spec.quant import QuantSpec, weight_of
from qat.spec.schema import check, option, read
from qat.spec.unlabelled import UnlabelledSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSpec:
    """The config group `scheduler`: factor of the learning rate, restarted at the quantized phase.

    Attributes:
        name: cosine, step or constant.
        warmup: linear warm-up as a fraction of each phase, 0..0.5.
        final: factor at the end of the cosine, 0..1.
        milestones: fractions of the phase after which the step schedule multiplies by gamma.
        gamma: that factor, in (0, 1].
    """

    name: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = option(0.0, low=0, high=0.5)
    final: float = option(0.0, low=0, high=1)
    milestones: tuple[float, ...] = option((0.4, 0.7), above=0, below=1)
    gamma: float = option(0.1, above=0, high=1)

    def __post_init__(self) -> None:
        check(self, "scheduler")
        if list(self.milestones) != sorted(self.milestones):
            raise SpecError(f"scheduler.milestones must ascend; got {list(self.milestones)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartSpec:
    """The config group `warm_start`: float training at the start of the run.

    Attributes:
        epochs: epochs of trainer.max_epochs that are float; 0 for none.
    """

    epochs: int = option(0, low=0)

    def __post_init__(self) -> None:
        check(self, "warm_start")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """The config group `training`.

    Attributes:
        label_smoothing: of the cross-entropy, 0..1.
        decay: which parameter groups the weight decay acts on: all, or weights only.
        compile: whether the network is compiled with torch.compile(fullgraph=True).
        bn_reestimate: training batches that re-estimate BatchNorm statistics on the hard weights
            before each evaluation; 0 keeps the running ones.
        start_batches: training batches that measure the start of alpha where it is measured.
        checkpoint_every: optimizer steps between two checkpoints.
        threads: CPU threads of torch; null leaves torch's choice.
        non_finite: what a loss or gradient that is no number does, before its update: stop ends
            the run; skip leaves the step out, with what its batches did to running statistics;
            roll_back goes on from the last checkpoint at half the learning rate.
        skips: steps in a row that may be left out.
        roll_backs: times that a run may go back, each at half the rate before.
    """

    label_smoothing: float = option(0.0, low=0, below=1)
    decay: Literal["all", "weights"] = "all"
    compile: bool = option(False, moves="bits")
    bn_reestimate: int = option(0, low=0)
    start_batches: int = option(4, low=1)
    checkpoint_every: int = option(100, low=1, moves="nothing")
    threads: int | None = option(None, low=1, moves="bits")
    non_finite: Literal["stop", "skip", "roll_back"] = option("stop", is_added=True)
    skips: int = option(10, low=1, is_added=True)
    roll_backs: int = option(3, low=1, is_added=True)

    def __post_init__(self) -> None:
        check(self, "training")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSpec:
    """The config group `runtime`: how quantized layers are computed, not what.

    Attributes:
        kernels: eager operations of torch; fused, one loop each way, compiled by Inductor in the
            first steps; or auto: fused in a run that is long enough to repay compiling, on a
            machine that can. Gradients of steps are added up in another order.
        saved: what a layer keeps of a quantized input for its backward pass: codes, a byte for
            each element, or floats, four. The numbers are the same, bit for bit.
        integer_forward: which convolutions and linear layers whose operands are both codes add up
            integers, by int8 operators: all (on), none (off), or auto: those where it pays, on CPUs
            with instructions for it. The sums are exact, and differ in last bits from sums of
            floats.
        backward: precision of the gradients of these layers: float32, or bf16, in which codes are
            exact and what comes from above is rounded.
        memory_format: layout of images and of what integer convolutions give: contiguous (NCHW), or
            channels_last, which is faster for some networks.
    """

    kernels: Literal["auto", "eager", "fused"] = option("auto", moves="bits", is_added=True)
    saved: Saved = option("codes", moves="nothing", is_added=True)
    integer_forward: IntegerForward = option("auto", moves="bits", is_added=True)
    backward: Backward = option("float32", is_added=True)
    memory_format: MemoryFormat = option("contiguous", moves="bits", is_added=True)

    def __post_init__(self) -> None:
        check(self, "runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmaSpec:
    """The config group `ema`: an average of the quantized phase, judged, selected and exported.

    Attributes:
        decay: limit of the average's decay a step, in (0, 1), after the usual warm-up
            (1 + t) / (10 + t); null judges the weights themselves.
    """

    decay: float | None = option(None, above=0, below=1, is_added=True)

    def __post_init__(self) -> None:
        check(self, "ema")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """A whole run.

    Attributes:
        model: `_target_` of a factory in `qat.models` and its options.
        data: see DataSpec.
        quant: see QuantSpec.
        optimizer: `_target_` of a torch.optim class and its options.
        scheduler: see SchedulerSpec.
        trainer: arguments of lightning.Trainer.
        logger: name -> logger node; csv is always written.
        callbacks: name -> callback node with `_target_`.
        warm_start: see WarmStartSpec.
        training: see TrainingSpec.
        ema: see EmaSpec.
        runtime: see RuntimeSpec.
        distill: see DistillSpec; None learns from labels alone.
        unlabelled: see UnlabelledSpec; None takes the images of `data`.
        seed: of weights, sample order and augmentation, >= 0.
        init_from: run folder, checkpoint or packed file whose weights start the run.
        init: how weights are put on their grids before training, see InitSpec; None leaves that to
            the update rule.
        resume: run folder to continue.
        resume_allow: dotted keys that may differ from the interrupted run's.
        audit_only: print the audit and stop.
    """

    model: Mapping[str, Any]
    data: DataSpec
    quant: QuantSpec
    optimizer: Mapping[str, Any]
    scheduler: SchedulerSpec
    trainer: Mapping[str, Any]
    logger: Mapping[str, Any] = option(factory=dict, moves="nothing")
    callbacks: Mapping[str, Any] = option(factory=dict, moves="nothing")
    warm_start: WarmStartSpec
    training: TrainingSpec
    ema: EmaSpec = option(factory=EmaSpec)
    runtime: RuntimeSpec = option(factory=RuntimeSpec)
    distill: DistillSpec | None = None
    unlabelled: UnlabelledSpec | None = None
    seed: int = option(1, low=0, high=2**32 - 1)
    init_from: str | None = None
    init: InitSpec | None = option(None, is_added=True)
    resume: str | None = option(None, moves="nothing")
    resume_allow: tuple[str, ...] = option((), moves="nothing")
    audit_only: bool = option(False, moves="nothing")

    def __post_init__(self) -> None:
        epochs = self.trainer.get("max_epochs")
        least = 1 if self.init is None else 0
        if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < least:
            hint = "; 0, without training, needs init=rounding, comq or magr_comq" if least else ""
            raise SpecError(
                f"trainer.max_epochs must be an integer >= {least}; got {epochs!r}{hint}"
            )
        self._check_init(epochs)
        if self.quant.has_quantizers and self.warm_epochs >= max(1, epochs):
            raise SpecError(
                f"warm_start.epochs={self.warm_start.epochs} leaves no epoch for the quantized "
                f"phase: trainer.max_epochs={epochs}; lower the one or raise the other"
            )
        self._check_labels()
        self._check_compiled()

    @property
    def warm_epochs(self) -> int:
        """Float epochs at the start; none where nothing is trained."""
        return self.warm_start.epochs if self.trainer["max_epochs"] else 0

    def _check_init(self, epochs: int) -> None:
        if self.init is None:
            return
        named = f"init={self.init.method}"
        if not self.quant.has_quantized_weights:
            raise SpecError(
                f"{named} puts weights on grids, and quant has none for them; choose one, as "
                "quant=bcgd_w4a4, or use init=null"
            )
        for weight in (
            self.quant.weight,
            *(weight_of(self.quant, o) for o in self.quant.overrides),
        ):
            check_start(self.init, weight)
        if self.warm_epochs:
            raise SpecError(
                f"{named} starts from the weights that are there, and "
                f"warm_start.epochs={self.warm_start.epochs} would train them as floats first; use "
                "warm_start.epochs=0 with init_from=FLOAT_RUN"
            )
        if epochs == 0 and self.distill is not None and not self.distill.is_none:
            raise SpecError(
                "trainer.max_epochs=0 trains nothing, so that distill has no effect; use "
                "distill=null, or train"
            )

    @property
    def uses_labels(self) -> bool:
        """Whether labels of the training images are used."""
        return self.distill is None or self.distill.labels

    def _check_labels(self) -> None:
        if self.uses_labels and self.unlabelled is not None:
            raise SpecError(
                f"unlabelled={','.join(self.unlabelled.sources)} needs a run without labels: "
                "distill=faqd_label_free, or distill.labels=false"
            )
        for name, plain in (("class_weights", "none"), ("sampling", "once")):
            if not self.uses_labels and (value := getattr(self.data, name)) != plain:
                raise SpecError(
                    f"data.{name}={value} counts labels, which distill.labels=false rules out; "
                    f"use {plain}"
                )
        if not self.uses_labels and self.training.label_smoothing != 0:
            raise SpecError(
                f"training.label_smoothing={self.training.label_smoothing} has no effect with "
                "distill.labels=false; use 0"
            )

    def _check_compiled(self) -> None:
        asked = {"integer_forward": "on", "backward": "bf16"}
        for name, value in asked.items():
            if self.training.compile and getattr(self.runtime, name) == value:
                raise SpecError(
                    f"runtime.{name}={value}: a compiled network multiplies floats, both ways; "
                    f"leave it at its default, or use training.compile=false"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunSpec":
        """Read a composed config; raises SpecError naming the key for anything wrong."""
        spec = read(cls, values, "")
        is_none = spec.distill is not None and spec.distill.is_none
        return dataclasses.replace(spec, distill=None) if is_none else spec
