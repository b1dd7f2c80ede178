"""Records: layers.csv and histograms.csv of a run, from which reports draw."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from qat.errors import SpecError
from qat.lit.measure.layer_records import LayerWeight, alphas, histogram, layer_weights, quantities
from qat.lit.measure.packed_codes import packed_codes, unpacked_codes
from qat.storage.csv_table import GrowingCsv
from qat.storage.reading import parsing

COLUMNS = {
    "layers": ("step", "epoch", "layer", "quantity", "value"),
    "histograms": ("step", "epoch", "layer", "low", "high", "levels", "counts"),
}


class Records(Callback):
    """Writes what every layer does during the quantized phase into the run folder.

        layers.csv      step, epoch, layer, quantity, value: alpha of each activation quantizer;
                        flip_rate (since the record before), distance and scale of each weight
        histograms.csv  step, epoch, layer, low, high, levels, counts: the latent weights in units
                        of their scale; `counts` of 41 bins from low to high, the outer ones with
                        all that lies beyond, and the grid's `levels`, separated by spaces

    `step` counts completed optimizer steps, `epoch` from 0. The first record is the start of the
    phase, before its first step; the others are ends of epochs, the last one always among them.
    A float network has no grid and leaves no file. BiPer has no histogram: its levels are periodic
    in w. DoReFa's of two bits and more shows tanh(w) / max|tanh(w)|, which is what it rounds.

    Training is bit for bit the same with and without the callback; a resumed run leaves the same
    bytes.

    Args:
        every_n_epochs: quantized epochs between two records in layers.csv, >= 1.
        snapshots: histograms of each weight, evenly spaced over the phase, both ends among them,
            >= 2; one per epoch if there are fewer epochs.

    Raises:
        SpecError: an option is out of range.
    """

    def __init__(self, every_n_epochs: int = 1, *, snapshots: int = 8) -> None:
        if every_n_epochs < 1:
            raise SpecError(f"callbacks.records.every_n_epochs must be >= 1; got {every_n_epochs}")
        if snapshots < 2:
            raise SpecError(f"callbacks.records.snapshots must be >= 2; got {snapshots}")
        self._every, self._snapshots = every_n_epochs, snapshots
        self._tables: dict[str, GrowingCsv] = {}
        self._forget()

    def _forget(self) -> None:
        self._has_begun = False
        self._codes: dict[str, dict[str, Any]] = {}  # packed
        self._positions: dict[str, Any] = {}

    # -- state: where the tables stand, and the codes that the next record compares with ----------

    def state_dict(self) -> dict[str, Any]:
        """Places in the tables and the codes of the last record."""
        positions = {name: table.position() for name, table in self._tables.items()}
        return {"has_begun": self._has_begun, "codes": dict(self._codes), "positions": positions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the last record."""
        self._has_begun = state_dict["has_begun"]
        with parsing("layer records of the checkpoint", "use an older one"):
            self._codes = {
                name: packed_codes(unpacked_codes(saved))
                for name, saved in state_dict["codes"].items()
            }
        self._positions = state_dict["positions"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; what a checkpoint holds is loaded after this."""
        if stage == "fit":
            folder = Path(trainer.default_root_dir)
            self._tables = {n: GrowingCsv(folder / f"{n}.csv", c) for n, c in COLUMNS.items()}
            self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows of steps that will be taken again; of a new run, all of them."""
        if trainer.is_global_zero:
            for name, table in self._tables.items():
                table.rewind(self._positions.get(name))

    # -- recording --------------------------------------------------------------------------------

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Record the start of the quantized phase, where alpha has been started already."""
        if not self._has_begun and _is_due(trainer, pl_module):
            self._has_begun = True
            self._record(trainer, pl_module, layers=True, histograms=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the end of an epoch of the quantized phase."""
        if not _is_due(trainer, pl_module):
            return
        warm: int = pl_module.warm_start_epochs  # type: ignore[assignment]
        done, epochs = trainer.current_epoch + 1 - warm, (trainer.max_epochs or 1) - warm
        layers = done % self._every == 0 or done == epochs
        histograms = done in snapshot_epochs(epochs, self._snapshots)
        self._record(trainer, pl_module, layers=layers, histograms=histograms)

    def _record(self, trainer: Trainer, module: Any, *, layers: bool, histograms: bool) -> None:
        if not (layers or histograms):
            return
        tables: dict[str, list[tuple[Any, ...]]] = {name: [] for name in COLUMNS}
        if layers:
            steps = alphas(module.net).items()
            tables["layers"] += [(name, "alpha", alpha) for name, alpha in steps]
        for weight in layer_weights(module):
            if layers:
                tables["layers"] += self._quantity_rows(weight)
            if histograms:
                tables["histograms"] += _histogram_rows(weight)
        place = (trainer.global_step, trainer.current_epoch)
        for name, found in tables.items():
            rows = [dict(zip(COLUMNS[name], (*place, *row), strict=True)) for row in found]
            if rows:
                self._tables[name].append(rows)

    def _quantity_rows(self, weight: LayerWeight) -> list[tuple[Any, ...]]:
        before = self._codes.get(weight.layer)
        values = quantities(weight, None if before is None else unpacked_codes(before))
        self._codes[weight.layer] = packed_codes(weight.codes)
        return [(weight.layer, quantity, value) for quantity, value in values.items()]


def _is_due(trainer: Trainer, module: Any) -> bool:
    return bool(trainer.is_global_zero and module.is_quantized and module.spec.has_quantizers)


def _histogram_rows(weight: LayerWeight) -> list[tuple[Any, ...]]:
    found = histogram(weight)
    if found is None:
        return []
    levels, counts = _joined(weight.quantizer.levels), _joined(found.counts)
    return [(weight.layer, -found.reach, found.reach, levels, counts)]


def _joined(numbers: Iterable[float]) -> str:
    return " ".join(map(str, numbers))


def snapshot_epochs(epochs: int, snapshots: int) -> set[int]:
    """Epochs, counted from 1, at whose ends all snapshots but the first are taken.

    >>> sorted(snapshot_epochs(12, 5)), sorted(snapshot_epochs(2, 8))
    ([3, 6, 9, 12], [1, 2])
    """
    gaps = snapshots - 1
    # rounded up in integers, so that the same epochs come out everywhere
    return {-(-epochs * i // gaps) for i in range(1, snapshots)}
