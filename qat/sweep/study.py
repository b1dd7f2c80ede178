"""Optuna study whose draws are known from its seed, and which outlives its process."""

import logging
import sqlite3
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from qat.spec.extras import require_optuna
from qat.spec.sweep import SweepSpec
from qat.sweep.draw import as_text, is_integer

if TYPE_CHECKING:
    import optuna

_AGAIN = "again"  # attribute of a trial: number of the failed one whose values it has
_STARTUP = 5  # trials drawn at random before TPE has something to learn from, and before pruning


class Study:
    """Trials of the tree-structured Parzen estimator, kept in FOLDER/optuna.db (SQLite).

    The sampler is seeded anew by the sweep's seed, the trial's number and the key, so that a search
    that was interrupted draws what an undisturbed one draws from the same results.

    Args:
        folder: the sweep's.
        spec: its options.
        name: of the study; one file holds many.

    Raises:
        SpecError: Optuna is not installed.
    """

    def __init__(self, folder: Path, spec: SweepSpec, name: str) -> None:
        require_optuna()
        import optuna

        optuna.logging.set_verbosity(logging.WARNING)
        self._spec = spec
        self._watched: set[int] = set()  # numbers of the trials whose epochs this process follows
        # by a function, as in a URL a folder's name may mean something else
        connect = partial(sqlite3.connect, folder.absolute() / "optuna.db", check_same_thread=False)
        self._study = optuna.create_study(
            storage=optuna.storages.RDBStorage(
                "sqlite:///optuna.db", engine_kwargs={"creator": connect}
            ),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=_STARTUP, n_warmup_steps=spec.prune_after
            )
            if spec.prune
            else optuna.pruners.NopPruner(),
        )

    @property
    def asked(self) -> int:
        """Number of draws so far; a failed one that was run again is one."""
        return sum(_AGAIN not in found.user_attrs for found in self._found())

    def unfinished(self) -> list["optuna.trial.Trial"]:
        """Trials that a process which is no more has begun."""
        import optuna

        return [
            optuna.trial.Trial(self._study, found._trial_id)
            for found in self._found()
            if found.state == optuna.trial.TrialState.RUNNING
        ]

    def failed(self) -> list["optuna.trial.FrozenTrial"]:
        """Trials that failed and were not begun again."""
        import optuna

        states = optuna.trial.TrialState
        begun = [found for found in self._found() if found.state != states.WAITING]
        again = {found.user_attrs.get(_AGAIN) for found in begun}
        return [t for t in begun if t.state == states.FAIL and t.number not in again]

    def drawn(self) -> list[list[str]]:
        """The values of all trials that have them, as overrides."""
        keys = self._spec.parameters.keys()
        return [
            [f"{key}={_text(found.params[key])}" for key in keys]
            for found in self._found()
            if keys <= found.params.keys()
        ]

    def ask(self) -> "optuna.trial.Trial":
        """A new trial, its values drawn."""
        trial = self._study.ask()
        self.overrides(trial)
        return trial

    def ask_again(self, found: "optuna.trial.FrozenTrial") -> "optuna.trial.Trial":
        """A new trial of a failed one's values."""
        import optuna

        waiting = (t for t in self._found() if t.state == optuna.trial.TrialState.WAITING)
        if all(t.user_attrs.get(_AGAIN) != found.number for t in waiting):
            self._study.enqueue_trial(found.params, user_attrs={_AGAIN: found.number})
        return self.ask()

    def overrides(self, trial: "optuna.trial.Trial") -> list[str]:
        """The values of a trial, as overrides; drawn now where it has none yet."""
        # those that are drawn jointly come first; the others have a seed each, so that what a kill
        # has left undrawn is drawn as it would have been
        seed = f"{self._spec.seed} {trial.number}"
        self._study.sampler = self._sampler(seed)
        _ = trial.relative_params
        own = []
        for key, values in self._spec.parameters.items():
            self._study.sampler = self._sampler(f"{seed} {key}")
            own.append(f"{key}={_text(_suggested(trial, key, values))}")
        return own

    def _sampler(self, seed: str) -> "optuna.samplers.BaseSampler":
        import optuna

        with warnings.catch_warnings():
            # constant_liar is new in Optuna; it keeps trials that run together apart
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=crc32(seed.encode()),
                n_startup_trials=_STARTUP,
                constant_liar=self._spec.parallel > 1,
            )

    def _found(self) -> list["optuna.trial.FrozenTrial"]:
        return self._study.get_trials(deepcopy=False)

    def tell(self, trial: "optuna.trial.Trial", score: float | None, *, pruned: bool) -> None:
        """The end of a trial: its score, None for a failure."""
        import optuna

        if pruned:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif score is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, score)

    def prunes(
        self, trial: "optuna.trial.Trial", scores: Mapping[int, float]
    ) -> tuple[int, float] | None:
        """The first epoch at which a trial falls behind, and its score; None if it does not.

        Args:
            trial: that runs.
            scores: quantized epoch, from 1 -> validation score.
        """
        known = self._found()[trial.number].intermediate_values
        if trial.number not in self._watched:
            self._watched.add(trial.number)
            # the process that reported these may have been killed before it acted
            if known and trial.should_prune():
                return max(known), known[max(known)]
        for epoch in sorted(set(scores) - set(known)):
            _report(trial, epoch, scores[epoch])
            if trial.should_prune():
                return epoch, scores[epoch]
        return None

    def report(self, trial: "optuna.trial.Trial", scores: Mapping[int, float]) -> None:
        """Keep the scores of a trial's epochs, as `prunes` does, and ask nothing."""
        known = self._found()[trial.number].intermediate_values
        for epoch in sorted(set(scores) - set(known)):
            _report(trial, epoch, scores[epoch])


def _report(trial: "optuna.trial.Trial", epoch: int, score: float) -> None:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial.report(score, epoch)


def _suggested(trial: "optuna.trial.Trial", key: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        return trial.suggest_categorical(key, [as_text(value) for value in values])
    options = {k: values[k] for k in ("log", "step") if values.get(k) is not None}
    if is_integer(values):
        return trial.suggest_int(key, values["low"], values["high"], **options)
    return trial.suggest_float(key, values["low"], values["high"], **options)


def _text(value: Any) -> str:
    """A value as an override: choices are texts already, numbers get six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
