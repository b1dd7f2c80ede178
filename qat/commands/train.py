"""Command line of training: flags, one run or a sweep, exit codes."""

import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from qat.commands.options import let_print_anything
from qat.errors import QatError, SpecError, one_line, shown
from qat.launch.join import adopted, join, meeting
from qat.launch.start import start_run
from qat.spec.check import check_config
from qat.spec.machine import check_machine
from qat.spec.overrides import quoted, with_quoted_paths
from qat.spec.run import RunSpec
from qat.storage.run_files import read_overrides
from qat.storage.status import is_finished
from qat.train.preflight import preflight
from qat.train.wandb_group import close_wandb, group_run

if TYPE_CHECKING:
    from qat.sweep.hydra_launcher import SweepWork

EXIT_BAD_COMMAND = 2
EXIT_FAILED = 1
_EXIT_SIGNAL = 128  # and the number of the signal


def main() -> None:
    """Entry point of `python train.py` and of the console script `qat-train`."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # before torch is loaded
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP has advice that does not apply
    # until and after the run's own handling, which saves: leave as it does, so that the state on
    # disk is told
    signal.signal(signal.SIGTERM, _leave)
    logging.raiseExceptions = False  # a disk that is full is told once, by the run
    let_print_anything()
    try:
        _run(sys.argv[1:])
    except QatError as error:
        _die(str(error), EXIT_BAD_COMMAND)
    except KeyboardInterrupt:
        _die("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except SystemExit as stop:
        if stop.code:
            # the state is told; another signal would only cut the interpreter's own end
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(_EXIT_SIGNAL + signum)


def _run(arguments: list[str]) -> None:
    from hydra._internal.utils import get_args_parser

    from qat.sweep.command import is_sweep

    parser = get_args_parser()
    parser.error = _refuse_flag  # type: ignore[method-assign]
    args = parser.parse_args(arguments)
    overrides = with_quoted_paths(args.overrides)
    flags = [a for a in arguments if a not in set(args.overrides)]
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        sys.argv = [sys.argv[0], *flags, *overrides]
        _hydra_main(_refuse_job)
    elif is_sweep(overrides, multirun=args.multirun):
        _sweep(overrides)
    else:
        _train(overrides, flags)


def _sweep(overrides: list[str]) -> NoReturn:
    from qat.sweep.command import sweep

    if meeting(os.environ) is not None:
        raise SpecError(
            "a sweep starts the processes of its runs itself; give it without torchrun or srun, "
            "and trainer.devices=N for several processes of each run"
        )
    try:
        sys.exit(0 if sweep(overrides, launch=_launch) else EXIT_FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:
        _die(f"{error.filename or 'sweep'}: {error.strerror or error}", EXIT_FAILED)


def _train(given: list[str], flags: list[str]) -> None:
    """One run, or the part of this process in one."""
    from qat.compose import checked, conf_folder

    found = meeting(os.environ)
    command = checked(conf_folder(), given)
    if own := adopted(found, command.spec.trainer, given):
        command = checked(conf_folder(), given + own)
    spec, is_resumed = command.spec, command.spec.resume is not None
    if spec.resume is not None and _is_finished(Path(spec.resume), spec):
        print(f"{shown(spec.resume)} is finished; see its summary.json")
        return
    if found is not None and found.place.size > 1:
        join(found, accelerator=spec.trainer.get("accelerator", "auto"))
    check_machine(command.config)
    # loads what the run needs anyway, before Hydra makes its folder
    preflight(command.config, spec)
    before = read_overrides(Path(spec.resume)) if spec.resume is not None else ()
    group_run([*before, *command.overrides])
    if found is not None and found.place.rank:
        _follow()
        return
    sys.argv = [sys.argv[0], *flags, *command.overrides]
    # a resumed run has a config of its own, whatever conf/ makes of its overrides by now
    saved = command.config if is_resumed else None
    _hydra_main(partial(_job, own=saved, given=given if is_resumed else None))


def _refuse_job(cfg: Any) -> NoReturn:
    """Hydra answers --help and its like without calling this."""
    raise AssertionError("a flag that only asks does not run anything")


def _refuse_flag(message: str) -> NoReturn:
    """Raise SpecError for what Hydra's parser does not take; options are no flags here."""
    from qat.compose import checked, conf_folder

    flag = re.search(r"unrecognized arguments: --?([\w.]+)", message)
    if flag is None:
        raise SpecError(f"{message}; options are key=value, e.g. seed=2; see --help")
    try:
        checked(conf_folder(), [f"{flag.group(1)}=1"])
        cure = f"write {flag.group(1)}=VALUE"
    except SpecError as error:
        cure = str(error)
    raise SpecError(f"--{flag.group(1)} is no flag, options are key=value: {cure}; see --help")


def _launch(overrides: list[str], folder: Path, work: "SweepWork") -> None:
    """Let Hydra hand the runs of a sweep to the launcher that the command chose.

    Each job finds its own run folder; Hydra's folders hold its own files only.
    """
    place = quoted(str(folder))
    own = [f"hydra.sweep.dir={place}", "hydra.sweep.subdir=.launched/${hydra.job.num}"]
    sys.argv = [sys.argv[0], "--multirun", *overrides, *own]

    def job(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        try:
            work(config, list(HydraConfig.get().overrides.task))
        except Exception as error:  # its status.json has it; the other jobs go on
            if not isinstance(error, QatError):
                traceback.print_exc()
            print(f"error: {one_line(error)}", file=sys.stderr)
        finally:
            close_wandb()

    _hydra_main(job)


def _is_finished(folder: Path, spec: RunSpec) -> bool:
    """Whether a run to be resumed has reached its end, and is not allowed to go beyond it."""
    return is_finished(folder) and "trainer.max_epochs" not in spec.resume_allow


def _hydra_main(task: Callable[[Any], Any]) -> None:
    import hydra
    from hydra.errors import HydraException

    from qat.compose import conf_folder
    from qat.compose.errors import explained
    from qat.compose.help import register_values

    register_values()
    # let exceptions through: ours become one line here, and a bug shows its whole traceback
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    job = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(task)
    try:
        job()
    except QatError as error:
        _die(str(error), EXIT_FAILED)
    except HydraException as error:  # of --help or --cfg, whose overrides nothing checks before
        _die(explained(error, conf_folder(), sys.argv[1:]), EXIT_BAD_COMMAND)
    except BrokenPipeError:
        raise
    except OSError as error:
        _die(f"cannot write the run folder: {error}", EXIT_FAILED)


def _job(cfg: Any, *, own: dict[str, Any] | None, given: list[str] | None) -> None:
    """One run in its folder.

    Args:
        cfg: what Hydra composed.
        own: the config of a run that is resumed, in its place.
        given: the overrides by which it is resumed.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from qat.compose import record
    from qat.ranks import group as ranks

    config: dict[str, Any] = own or OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    spec = check_config(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if own is None and OmegaConf.to_container(cfg) != config:
        # what was looked up, as ${oc.env:NAME}, is recorded as it was found
        record(folder, list(HydraConfig.get().overrides.task), config)
    ranks.from_first((config, str(folder)))
    _run_here(config, spec, folder, given=given)


def _follow() -> None:
    """The part in a run of a process that is not the first; what is to be done comes from there."""
    from qat.ranks import group as ranks

    nothing: tuple[dict[str, Any], str] = {}, ""
    config, folder = ranks.from_first(nothing)
    _run_here(config, check_config(config), Path(folder))


def _run_here(
    config: dict[str, Any], spec: RunSpec, folder: Path, *, given: list[str] | None = None
) -> None:
    """A run, or the part of this process in one; ends the process if it fails."""
    try:
        code = start_run(config, spec, folder, given=given)
    except QatError as error:
        _die(str(error), EXIT_FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:
        _die(f"{folder}: {error.strerror or error}", EXIT_FAILED)
    finally:
        close_wandb()
    if code:
        sys.exit(code)


def _die(message: str, code: int) -> NoReturn:
    found = meeting(os.environ)
    rank = found.place.rank if found is not None else 0
    group = sys.modules.get("qat.ranks.group")
    # before they have met, all processes of a machine make the same mistake
    is_machines_first = found is None or found.place.local_rank == 0
    if group.tells() if group is not None and group.size() > 1 else is_machines_first:
        where = f"process {rank}: " if rank else ""
        print(f"error: {where}{one_line(message)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":  # of a run's processes, see qat.launch.start
    main()
