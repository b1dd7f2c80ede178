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


class LostProcessError(QatError, RuntimeError):
    """Another process of the training has ended, so that this one cannot go on."""


def shown(text: object) -> str:
    r"""A text for a terminal, such as the name of a file: what cannot be printed is escaped.

    A name may hold anything but NUL: line breaks, the sequences that steer a terminal, bytes that
    are no UTF-8 (which Python keeps as lone surrogates).

    >>> print(shown("a\x1b[2J.png"), shown(b"caf\xe9".decode(errors="surrogateescape")))
    a\x1b[2J.png caf\xe9
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def one_line(error: object) -> str:
    """A message as one line for a terminal."""
    return shown(" ".join(str(error).split()))


def _escaped(letter: str) -> str:
    is_byte = 0xDC80 <= ord(letter) <= 0xDCFF
    return f"\\x{ord(letter) - 0xDC00:02x}" if is_byte else repr(letter)[1:-1]


def expect(value: object, kind: type, name: str, cure: str) -> None:
    """Raise SpecError unless an argument is of its kind: other things fail later, by other names.

    Args:
        value: what was given.
        kind: class that it must be of.
        name: of the argument.
        cure: what to give.
    """
    if not isinstance(value, kind):
        got = value.__name__ if isinstance(value, type) else a_or_an(type(value).__name__)
        raise SpecError(f"{name} must be {a_or_an(kind.__name__)}, got {got}; {cure}")


def a_or_an(noun: str) -> str:
    """A noun with its article, by its first letter."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def percent(share: float) -> str:
    """A share in percent with two decimals; 100 only where it is all, and 0 where it is nothing."""
    rounded = min(max(100 * share, 0.01 if share > 0 else 0), 99.99 if share < 1 else 100)
    return f"{rounded:.2f} %"
