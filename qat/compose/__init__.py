"""Config composition by Hydra: a command's words to a checked config, a run folder back to its own.

The only place beside the command line that knows Hydra.
"""

from qat.compose.config import (
    Checked,
    Composed,
    checked,
    combinations,
    composed,
    composed_data,
    group_option,
    sweep_option,
)
from qat.compose.resume import Resumed, resumed
from qat.compose.run_folder import opened, record, recorded
from qat.compose.session import conf_folder

__all__ = [
    "Checked",
    "Composed",
    "Resumed",
    "checked",
    "combinations",
    "composed",
    "composed_data",
    "conf_folder",
    "group_option",
    "opened",
    "record",
    "recorded",
    "resumed",
    "sweep_option",
]
