"""Export formats by name: what scripts/export.py can write, from one table.

The command line, its checks and its help read this table. Standard library only.
"""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat.commands.export_job import ExportJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format that a run's network can be written in.

    Attributes:
        title: what it is for, in one line.
        writer: "MODULE:FUNCTION" below `qat.commands`, called as (job, options of the command).
        options: of the command that are for this format, or for those that name them, too.
        needs_onnx: whether the extra `export` must be installed.
    """

    title: str
    writer: str
    options: tuple[str, ...] = ()
    needs_onnx: bool = False


FORMATS: dict[str, Format] = {
    "packed": Format(
        title="one file of weights at their bits, for qat.load_packed",
        writer="packed_file:write_packed",
        options=("trits",),
    ),
    "onnx": Format(
        title="faithful.onnx and fast.onnx, for integer kernels of onnxruntime, or general.onnx",
        writer="onnx_files:write_onnx",
        options=("form", "calibration"),
        needs_onnx=True,
    ),
    "qonnx": Format(
        title="qonnx.onnx, for FPGA tool chains",
        writer="onnx_files:write_qonnx",
        needs_onnx=True,
    ),
}


def format_lines() -> str:
    """The formats for a reader: a line for each, with the options that are for it."""
    width = max(map(len, FORMATS))
    lines = []
    for name, row in FORMATS.items():
        own = f" ({', '.join(f'{option}=' for option in row.options)})" if row.options else ""
        lines.append(f"    {name:{width}}  {row.title}{own}")
    return "\n".join(lines)


def write(name: str, job: "ExportJob", options: Any) -> None:
    """Write a network in the format of this name.

    Args:
        name: of FORMATS.
        job: the network.
        options: of the command.

    Raises:
        QatError: the network has no such form, or a file cannot be written.
    """
    resolve_name(f"qat.commands.{FORMATS[name].writer}")(job, options)
