"""Exceptions: each message names the value, the key and the cure."""


class QatError(Exception):
    """Base of every error that qat raises on purpose; the command line prints it as one line."""


class SpecError(QatError, ValueError):
    """An option is unknown, of the wrong type, out of range, or contradicts another one."""


class NotOnGridError(QatError, ValueError):
    """A weight that should lie on its grid holds a value that is no level of it."""


class DataError(QatError, ValueError):
    """A data set is missing, incomplete or unreadable."""


class CheckpointError(QatError, ValueError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class NonFiniteError(QatError, ArithmeticError):
    """A loss or a gradient is not finite; raised before the update that would spread it."""
