"""Arguments key=value of a command, read into a typed group; mistakes end in one line."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat.errors import QatError, SpecError
from qat.overrides import with_quoted_paths
from qat.schema import read

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
    try:
        values: Any = OmegaConf.to_container(OmegaConf.from_cli(with_quoted_paths(arguments)))
    except (OmegaConfBaseException, ValueError) as error:
        raise SpecError(f"these arguments cannot be read: {str(error).splitlines()[0]}") from None
    return read(kind, values, "")


def split_data(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of the config group `data` (data=..., data.root=...), and the others."""
    data = [a for a in arguments if a.startswith(("data=", "data."))]
    return data, [a for a in arguments if a not in data]


def run_command(
    main: Callable[[list[str]], None], doc: str, *, needs_arguments: bool = True
) -> None:
    """Run a command with the process's arguments; an error of qat's becomes one line, exit 2."""
    arguments = sys.argv[1:]
    if set(arguments) & {"-h", "--help"} or (needs_arguments and not arguments):
        print(doc.strip())
        sys.exit(0 if arguments else 2)
    try:
        main(arguments)
    except QatError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
