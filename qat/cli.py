"""The command line: the only place that knows Hydra. Compose, check, build, fit, test."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from qat.errors import QatError, SpecError
from qat.run_spec import RunSpec

EXIT_BAD_COMMAND = 2
EXIT_FAILED = 1


def main() -> None:
    """Entry point of `python train.py` and of the console script `qat-train`."""
    try:
        _run(sys.argv[1:])
    except QatError as error:
        _die(str(error), EXIT_BAD_COMMAND)
    except KeyboardInterrupt:
        _die("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


def _run(arguments: list[str]) -> None:
    from hydra._internal.utils import get_args_parser

    from qat.compose import checked, conf_folder, resumed_overrides

    args = get_args_parser().parse_args(arguments)
    overrides: list[str] = args.overrides
    asks_only = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    if not asks_only:
        overrides = resumed_overrides(overrides)
        specs = checked(conf_folder(), overrides, multirun=args.multirun)
        if specs[0].resume is not None and _is_finished(Path(specs[0].resume), specs[0]):
            print(f"{specs[0].resume} is finished; see its summary.json")
            return
    flags = [a for a in arguments if a not in set(args.overrides)]
    sys.argv = [sys.argv[0], *flags, *overrides]
    _hydra_main()


def _is_finished(folder: Path, spec: RunSpec) -> bool:
    """Whether a run to be resumed has reached its end, and is not allowed to go beyond it."""
    with suppress(OSError, ValueError):
        state = json.loads((folder / "status.json").read_text())["state"]
        return bool(state == "finished") and "trainer.max_epochs" not in spec.resume_allow
    return False


def _hydra_main() -> None:
    import hydra

    from qat.compose import conf_folder

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # let exceptions through: ours become one line here, and a bug shows its whole traceback
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    job = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(_job)
    try:
        job()
    except QatError as error:
        _die(str(error), EXIT_FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:
        _die(f"cannot write the run folder: {error}", EXIT_FAILED)


def _job(cfg: Any) -> float | None:
    """One run in its folder; returns the selected validation accuracy, for sweepers."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from qat.preflight import check_config, config_hash

    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    spec = check_config(config)
    is_multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    folder = Path(HydraConfig.get().runtime.output_dir)
    status = Status(folder, config_hash(config))
    try:
        return _train(cfg, config, spec, folder, status)
    except QatError as error:
        status.write("failed", error=str(error))
        if is_multirun:  # the other jobs go on; Hydra reports this one
            raise
        _die(str(error), EXIT_FAILED)
    except SystemExit as stop:
        status.write("interrupted", error=f"exit code {stop.code}")
        raise
    except OSError as error:
        status.write("failed", error=str(error))
        _die(f"{folder}: {error.strerror or error}", EXIT_FAILED)
    except BaseException as error:
        status.write("failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        _close_wandb()


def _train(
    cfg: Any, config: Mapping[str, Any], spec: RunSpec, folder: Path, status: "Status"
) -> float:
    from qat.audit_table import audit_table
    from qat.lit.run import audit_untrained, build, train
    from qat.lit.signals import Signals

    with Signals() as signals:
        parts = _parts(cfg, folder)
        built = build(spec, parts)
        if spec.audit_only:
            print(audit_table(audit_untrained(built, spec)))
            return 0.0
        status.begin(spec.resume_allow)
        for logger in parts.loggers:
            logger.log_hyperparams(dict(config))
        if not sys.stderr.isatty():
            spec = replace(spec, trainer={**spec.trainer, "enable_progress_bar": False})
        print(f"run folder: {folder}", flush=True)
        summary, found = train(built, spec, parts, folder, signals=signals)
    print("\n" + audit_table(found) + "\n")
    summary |= {"config_hash": status.config_hash, "wall_seconds": status.seconds()}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    status.write("finished")
    print(_result_lines(summary, folder))
    chosen = summary.get("selected") or summary["last"]
    return float(chosen["val_acc"])


def _parts(cfg: Any, folder: Path) -> Any:
    """Resolve every `_target_` of the config."""
    from qat.compose import instantiated
    from qat.lit.run import Parts

    return Parts(
        model=lambda **shape: instantiated(cfg.model, **shape),
        optimizer=instantiated(cfg.optimizer, _partial_=True),
        callbacks=[instantiated(node) for node in cfg.callbacks.values()],
        loggers=[instantiated(node, save_dir=str(folder)) for node in cfg.logger.values()],
    )


class Status:
    """RUN/status.json: state (running, finished, failed, interrupted), config hash, error, time.

    Args:
        folder: run folder.
        config_hash: hash of the resolved config.
    """

    def __init__(self, folder: Path, config_hash: str) -> None:
        self._path = folder / "status.json"
        self.config_hash = config_hash
        self._earlier = 0.0
        self._start = time.monotonic()
        self._threads: int | None = None
        with suppress(OSError, ValueError):
            before = json.loads(self._path.read_text())
            self._earlier = float(before.get("seconds", 0.0))
            self._threads = before.get("threads")

    def begin(self, allow: Sequence[str]) -> None:
        """Mark the run as running, after comparing the thread count with an interrupted run's.

        Raises:
            SpecError: another number of threads, which changes the last bits of every sum.
        """
        import torch

        threads = torch.get_num_threads()
        if self._threads not in (None, threads) and "threads" not in allow:
            raise SpecError(
                f"the run was trained with {self._threads} threads, now there are {threads}; set "
                f"training.threads={self._threads} when starting a run, OMP_NUM_THREADS="
                f"{self._threads} now, or resume_allow=[threads] for a run that is not exact"
            )
        self._threads = threads
        self.write("running")

    def seconds(self) -> float:
        """Wall time of the run, interrupted parts included."""
        return self._earlier + time.monotonic() - self._start

    def write(self, state: str, *, error: str | None = None) -> None:
        """Replace the file; a folder that cannot be written to is not worth a second error."""
        content = {
            "state": state,
            "config_hash": self.config_hash,
            "error": error,
            "seconds": self.seconds(),
            "threads": self._threads,
        }
        with suppress(OSError):
            part = self._path.with_suffix(".json.part")
            part.write_text(json.dumps(content, indent=2) + "\n")
            part.replace(self._path)


def _result_lines(summary: Mapping[str, Any], folder: Path) -> str:
    lines = []
    for name in ("warm_start", "last", "selected"):
        if name in summary:
            r = summary[name]
            text = f"{name:10}  val {r['val_acc']:.4f}  test {r['test_acc']:.4f}"
            lines.append(text + (f"  (epoch {r['epoch']})" if "epoch" in r else ""))
    lines.append(rule_line(summary["rule"]))
    return "\n".join([*lines, f"{summary['wall_seconds']:.0f} s; {folder / 'summary.json'}"])


def rule_line(rule: Mapping[str, Any]) -> str:
    """What the update rule's numbers amounted to in this run, in plain words."""
    if rule["method"] != "update":
        return (
            f"weights by {rule['method']}, in the graph: {rule['quantized_steps']} quantized steps"
        )
    numbers = ", ".join(f"{k}={v:g}" for k, v in rule["numbers"].items())
    text = f"rule {rule['name']}({numbers}): {rule['quantized_steps']} quantized steps"
    if rule["name"] == "bcgd":
        text += (
            f"; blending alone pulled latent weights {100 * rule['pull']:.2g} % of the way to the "
            "grid, the gradient steps at hard weights did the rest"
        )
    if rule["name"] == "binary_relax":
        text += f", relaxed for {rule['relaxed_steps']} of them, then hard"
    return text


def _close_wandb() -> None:
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


def _die(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
