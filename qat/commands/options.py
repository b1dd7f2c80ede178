"""Command-line arguments key=value, read into a typed group; mistakes end in one line."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qat.errors import CheckpointError, QatError, SpecError, one_line
from qat.spec.extras import require_onnx
from qat.spec.overrides import unquoted, with_quoted_paths
from qat.spec.schema import read
from qat.storage.status import is_run_folder

T = TypeVar("T")


def read_arguments(kind: type[T], arguments: Sequence[str], *, example: str) -> T:
    """Read key=value arguments into the dataclass `kind`.

    Args:
        kind: dataclass of options.
        arguments: of the command line.
        example: one right argument, for messages.

    Raises:
        SpecError: an argument is no key=value, unknown, or of a wrong type or value.
    """
    bare = [a for a in arguments if "=" not in a]
    if bare:
        raise SpecError(f"{bare[0]!r} must be key=value, e.g. {example}; see --help")
    texts = {name for name, hint in get_type_hints(kind).items() if hint in (str, str | None)}
    # texts as they were typed: to YAML 0123456 is a number, and what follows " #" a remark
    typed = {a.partition("=")[0]: a.partition("=")[2] for a in arguments}
    own = {name: unquoted(typed[name]) for name in texts & set(typed) if typed[name] != "null"}
    rest = [a for a in arguments if a.partition("=")[0] not in own]
    try:
        values: Any = OmegaConf.to_container(OmegaConf.from_cli(with_quoted_paths(rest)))
    except (OmegaConfBaseException, ValueError, YAMLError) as error:
        shown = " ".join(arguments)
        raise SpecError(
            f"{shown!r} cannot be read ({str(error).splitlines()[0]}); close every bracket"
        ) from None
    return read(kind, {**values, **own}, "")


def split_data(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of the config group `data` (data=..., data.root=...), and the others."""
    data = [a for a in arguments if a.startswith(("data=", "data."))]
    return with_quoted_paths(data), [a for a in arguments if a not in data]


def check_path(path: Path) -> None:
    """Raise CheckpointError unless a network may be at this path; reads no more than names.

    A file has to end in .safetensors or .onnx, a folder to be that of a run.
    """
    if path.is_dir():
        if not is_run_folder(path):
            raise CheckpointError(f"{path} is no run folder; give runs/DATE/TIME")
    elif not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; give a run folder, or a file of scripts/export.py"
        )
    elif path.suffix not in (".safetensors", ".onnx"):
        hint = "its run folder" if path.suffix == ".ckpt" else "a file of scripts/export.py"
        raise CheckpointError(f"{path} is neither .safetensors nor .onnx; give {hint}")
    elif path.suffix == ".onnx":
        require_onnx()


def let_print_anything() -> None:
    """Let letters that the terminal's encoding lacks be printed escaped, as on stderr."""
    # a stream whose file was exchanged below it may refuse
    with suppress(OSError):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")


def run_command(
    main: Callable[[list[str]], None], doc: str, *, needs_arguments: bool = True
) -> None:
    """Run a command with the process's arguments; an error of qat's becomes one line, exit 2."""
    arguments = sys.argv[1:]
    if set(arguments) & {"-h", "--help"} or (needs_arguments and not arguments):
        print(doc.strip())
        sys.exit(0 if arguments else 2)
    let_print_anything()
    try:
        main(arguments)
    except QatError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
