"""Quantize: a Lightning callback that turns any LightningModule into training on few levels."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer

from qat.errors import CheckpointError, QatError, SpecError, one_line
from qat.lit.measure.quant_stats import QuantStats
from qat.loop.entries import accept_float, has_loaded, parted
from qat.loop.fits import check_finds_unused, lengths, refuse
from qat.loop.found import network_of, unused_parts
from qat.loop.inputs import arrived, first_batch, images_in
from qat.loop.monitors import choose_anew, wait_for_quantization
from qat.loop.quantization import Form, Quantization, like
from qat.quantize.audit import Audit
from qat.quantize.audit_table import audit_table
from qat.quantize.plan import project_weights
from qat.ranks import group as ranks
from qat.spec.header import Header
from qat.spec.presets import quantization
from qat.spec.quant import QuantSpec

# what shows the network its inputs: a tensor, or what makes one of a batch
Example = Tensor | Callable[[Any], Tensor]


class Quantize(Callback):
    """Quantization-aware training of any LightningModule, with no line of it changed.

        Trainer(callbacks=[Quantize("bcgd_w1a4")]).fit(module, loader)

    The network is prepared once the module has made it (`__init__`, `setup`, `configure_model`);
    the optimizers that `configure_optimizers` returns, one or several, with automatic or manual
    optimization, follow the update rule; validation, test and predict see hard weights. At the end
    of a fit the network is audited.

    A checkpoint holds the float network's own keys with latent weights, so that it loads without
    this callback as a float network; steps, scales, phase and options lie beside them, and a fit
    goes on from it bit for bit. Files of weights alone, which have no room for these, are refused.

    At the switch from float epochs to quantized ones callbacks that choose by a metric
    (ModelCheckpoint, EarlyStopping) begin to choose anew.

    Args:
        spec: what to quantize: a name as `quant=` of the command takes it ("bcgd_w1a4"), a
            `QuantSpec`, or the config group `quant` as a mapping.
        module: dotted name of the submodule that is the network, "" for the whole module. None
            takes the only child with parameters, or the whole module if its `forward` runs all.
        example: what enters the network: a tensor (N, ...), or a function batch -> tensor. None
            takes the first tensor of a batch, of several the first with four axes.
        warm_start_epochs: float epochs at the start; 0 for none.
        steps: optimizer steps of the whole fit, of each optimizer. None counts them from the
            trainer; where optimization is manual, one for each batch.
        stats_every_n_steps: steps between logged numbers of flips and distance; 0 logs none.
        ema_decay: in (0, 1): what is judged and exported is a moving average of the quantized
            phase, on its grids; None for none.

    Attributes:
        quantization: the network in training, None before it has been prepared.
        found: what the audit at the end of a fit found, None before.

    Raises:
        SpecError: an option is out of range or of another type.

    Logs quant/flip_rate, quant/distance (`QuantStats`), and quant/theta at each validation; of
    several callbacks each under its module's name, quant/theta/NAME.
    """

    def __init__(
        self,
        spec: str | Mapping[str, Any] | QuantSpec,
        *,
        module: str | None = None,
        example: Example | None = None,
        warm_start_epochs: int = 0,
        steps: int | None = None,
        stats_every_n_steps: int = 50,
        ema_decay: float | None = None,
    ) -> None:
        for name, value, least in (
            ("warm_start_epochs", warm_start_epochs, 0),
            ("steps", 1 if steps is None else steps, 1),
            ("stats_every_n_steps", stats_every_n_steps, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(f"Quantize({name}=...) is a number >= {least}, got {value!r}")
        if not isinstance(module, str | None):
            raise SpecError(f"Quantize(module=...) is the dotted name of a part, got {module!r}")
        if not (example is None or isinstance(example, Tensor) or callable(example)):
            raise SpecError(
                "Quantize(example=...) is a tensor or a function of a batch, got a "
                f"{type(example).__name__}"
            )
        self._spec = quantization(spec)
        self._name, self._example = module, example
        self._warm_epochs, self._steps = warm_start_epochs, steps
        self._every, self._ema_decay = stats_every_n_steps, ema_decay
        self._stats: QuantStats | None = None
        self._of: LightningModule | None = None
        self._patched: LightningModule | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._shown = ExitStack()
        self.quantization: Quantization | None = None
        self.found: Audit | None = None

    @property
    def state_key(self) -> str:
        """Key of this callback's state: several serve one trainer, each with a network."""
        return f"Quantize[{self._name or ''}]"

    # -- results ----------------------------------------------------------------------------------

    def audit(self) -> Audit:
        """Every layer on its grid, as `Quantization.audit`."""
        return self._trained().audit()

    def save_packed(self, path: str | Path, header: Header | None = None) -> int:
        """Write the packed file; returns its size in bytes, as `Quantization.save_packed`."""
        return self._trained().save_packed(path, header)

    def save_onnx(self, path: str | Path) -> Form:
        """Write an ONNX file; returns its form, as `Quantization.save_onnx`."""
        training, module = self._trained(), self._of
        trainer = module.__dict__.get("_trainer") if module is not None else None
        if module is None or trainer is None:
            return training.save_onnx(path)
        module.trainer = None  # the network is copied, and may be the module itself
        try:
            return training.save_onnx(path)
        finally:
            module.trainer = trainer

    def _trained(self) -> Quantization:
        if self.quantization is None or not self.quantization.is_quantized:
            raise QatError(
                "nothing has been quantized yet; fit with this callback first, past the warm start"
            )
        return self.quantization

    # -- preparation ------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the network prepared as soon as the module has made it.

        Raises:
            QatError: the trainer or the module cannot be served; the message says the cure.
        """
        refuse(trainer, pl_module)
        if self._of is not None and self._of is not pl_module:
            raise QatError("this Quantize has quantized another module; make one for each module")
        if self._of is pl_module:
            return
        original = pl_module.configure_model

        def configure_model(module: LightningModule) -> None:
            # Lightning's last call to the module before weights are loaded and optimizers are made
            module.__dict__.pop("configure_model", None)
            original()
            self._prepare(module)

        self._patched = pl_module
        pl_module.configure_model = MethodType(configure_model, pl_module)  # type: ignore[method-assign]

    def _prepare(self, module: LightningModule) -> None:
        trainer, net = module.trainer, network_of(module, self._name)
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        is_given = isinstance(self._example, Tensor)
        batch = None if is_given else first_batch(trainer)
        example: Tensor | None = None
        try:
            # a run with this callback draws the numbers of one without; Lightning is about to move
            # the module to its device, and has new tensors made there already
            with isolate_rng(), device:
                example = self._inputs(None if is_given else arrived(module, batch, device))
                example = like(example, net)
                if net is module and self._name is None and (others := unused_parts(net, example)):
                    raise QatError(
                        f"{type(module).__name__}.forward does not run {', '.join(others)}; name "
                        'the network: Quantize(module=...), or module="" for all of it'
                    )
                self.quantization = Quantization(
                    net, self._spec, example=example, ema_decay=self._ema_decay
                )
        except QatError:
            raise
        except Exception as error:
            shown = (
                f"{tuple(example.shape)} of {example.dtype}" if example is not None else "a batch"
            )
            raise QatError(
                f"{type(net).__name__} cannot be run on {shown}: {type(error).__name__}, "
                f"{one_line(error)}; give Quantize(example=...), or name the network: "
                "Quantize(module=...)"
            ) from error
        self._of = module
        for holder in {module, net}:
            holder.register_load_state_dict_pre_hook(accept_float)  # type: ignore[no-untyped-call]
        if self._every:
            self._stats = QuantStats(
                self._every, phases=self.quantization.phases, suffix=self._suffix(trainer)
            )

    def _suffix(self, trainer: Trainer) -> str:
        """What follows the names of logged numbers: nothing where this is the only one."""
        others = sum(isinstance(c, Quantize) for c in trainer.callbacks)  # type: ignore[attr-defined]
        return f"/{self._name or 'module'}" if others > 1 else ""

    def _inputs(self, batch: Any) -> Tensor:
        """What enters the network of a batch."""
        if isinstance(self._example, Tensor):
            return self._example
        found = images_in(batch) if self._example is None else self._example(batch)
        if not isinstance(found, Tensor):
            raise QatError(
                f"a batch is a {type(batch).__name__} without a tensor to show the network; give "
                "Quantize(example=...), a tensor or a function of a batch"
            )
        return found.detach()

    # -- training ---------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the optimizers follow the rule; Lightning restores their state after this.

        Raises:
            QatError: an optimizer cannot be served, or the fit has no quantized phase.
        """
        phases = self._present(pl_module).phases
        has_loaded(phases.net)
        phases.forget()
        bases = list(trainer.strategy.optimizers)
        steps, warm = lengths(trainer, pl_module, steps=self._steps, warm_epochs=self._warm_epochs)
        if warm:
            check_finds_unused(trainer.strategy.model, phases.net)
        wrapped = phases.wrap(bases, [steps] * len(bases), [warm] * len(bases))
        trainer.strategy.optimizers = wrapped
        if self._loaded is not None:
            phases.load_state_dict(self._loaded)
            self._loaded = None
        phases.enable()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let early stopping wait for the quantized phase."""
        if not self._prepared().is_quantized:
            wait_for_quantization(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Switch from the float phase to the quantized one."""
        is_due = None
        if self._warm_epochs and not pl_module.automatic_optimization:
            # by hand an optimizer may step at any rate: the warm start ends with its epochs
            is_due = trainer.current_epoch >= self._warm_epochs or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        phases = self._prepared().phases
        switched = phases.advance(lambda: self._calibration(batch), is_due=is_due)
        if switched:  # each process has another batch: all start from what the first one measured
            ranks.copy_from_first([*phases.net.parameters(), *phases.net.buffers()])
            phases.begin_average()
        if switched and self._warm_epochs:
            choose_anew(trainer)

    def _calibration(self, batch: Any) -> Iterator[Tensor]:
        net = self._prepared().net
        yield like(self._inputs(batch), net)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Remember codes before a step that is to be measured."""
        if self._stats is not None:
            self._stats.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log flips and distance of a step that was measured."""
        if self._stats is not None:
            self._stats.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit the network.

        Raises:
            NotOnGridError: a value is off its grid.
        """
        training = self._prepared()
        if not training.is_quantized:
            rank_zero_warn("the fit ended in its float warm start: nothing was quantized")
            return
        if not training.phases.is_hard:
            rank_zero_warn(
                f"the fit ended at theta={training.phases.theta:.3g}: the module holds relaxed "
                "weights, and what is audited and exported are their projections; with fewer "
                "optimizer steps than batches give Quantize(steps=...)"
            )
        self.found = training.audit()
        rank_zero_info(audit_table(self.found))

    # -- evaluation -------------------------------------------------------------------------------

    def _show(self, trainer: Trainer, module: LightningModule) -> None:
        self._shown.close()
        phases = self._present(module).phases
        if trainer.state.fn != "fit":
            if has_loaded(phases.net) and phases.optimizers:
                # other weights than those the optimizers know: what is judged is in the network
                phases.let_go(is_quantized=phases.is_quantized)
                project_weights(phases.net, phases.plan)
            if not phases.is_quantized:
                rank_zero_warn("nothing has been quantized yet: the float network is judged")
        phases.enable()
        self._shown.enter_context(phases.judged_weights())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show hard weights (float ones during the warm start)."""
        self._show(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As in validation."""
        self._show(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As in validation."""
        self._show(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log theta."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            pl_module.log(f"quant/theta{self._suffix(trainer)}", self._prepared().phases.theta)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the forward weights again."""
        self._shown.close()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after validation."""
        self._shown.close()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after validation."""
        self._shown.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """As after validation."""
        self.teardown(trainer, pl_module, "")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As after validation; a module that was not prepared is left as it was."""
        self._shown.close()
        if self._patched is not None:
            self._patched.__dict__.pop("configure_model", None)
            self._patched = None

    # -- checkpoint -------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what quantization adds beside a state dict of the float network's keys."""
        training = self._prepared()
        state = checkpoint["state_dict"]
        latent = training.phases.latent_entries(pl_module)
        state = state | {key: value for key, value in latent.items() if key in state}
        checkpoint["state_dict"], own = parted(state, pl_module, training.net)
        checkpoint["callbacks"][self.state_key] = {
            "phase": training.phases.state_dict(),
            "quantizers": own,
        }

    @torch.no_grad()
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore what quantization adds; an evaluation gets hard weights.

        Raises:
            CheckpointError: the file was saved without this callback.
        """
        own = checkpoint["callbacks"].get(self.state_key)
        if own is None:
            there = [key for key in checkpoint["callbacks"] if key.startswith("Quantize[")]
            cure = (
                f"but of {', '.join(there)}: give the module of that name"
                if there
                else "it was saved without it: load its weights, and fit without ckpt_path"
            )
            raise CheckpointError(f"the checkpoint has no state of {self.state_key}; {cure}")
        training = self._prepared()
        net, phases = training.net, training.phases
        phases.check_state(own["phase"])
        has_loaded(net)
        entries = net.state_dict()
        for key, value in own["quantizers"].items():
            entries[key].copy_(value)
        phases.let_go(is_quantized=bool(own["phase"]["is_quantized"]))
        self._loaded = own["phase"] if trainer.state.fn == "fit" else None
        if self._loaded is None:
            phases.load_state_dict(own["phase"])
            phases.settle()

    def _prepared(self) -> Quantization:
        if self.quantization is None:
            raise QatError(
                "the network has not been prepared: the trainer did not call this callback's "
                "setup(); give it to the Trainer as Trainer(callbacks=[Quantize(...)])"
            )
        return self.quantization

    def _present(self, module: LightningModule) -> Quantization:
        """The network in training, which has to be the one that the module holds."""
        training = self._prepared()
        if network_of(module, self._name) is not training.net:
            raise QatError(
                f"{type(module).__name__} has made another network since its first was quantized; "
                "let setup() and configure_model() keep the one there is"
            )
        return training
