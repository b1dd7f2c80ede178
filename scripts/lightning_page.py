"""The page of Lightning's callbacks and trainer flags, out of the tables that the checks read."""

from collections.abc import Mapping

from qat.spec.lightning import CALLBACKS, TRAINER

_HEAD = """# Lightning's callbacks and flags

<!-- written by scripts/pages.py from qat/spec/lightning.py; not by hand -->

Every callback of `lightning.pytorch.callbacks` and every argument of `lightning.Trainer`, with what
becomes of it in a run of `train.py`. What works is tried in a run of four epochs, of which two are
the float warm start, by `tests/train/test_lightning_parts.py`; what does not is refused in one line
before anything runs. A callback is added by `+callbacks.NAME={_target_: ...}`, a flag by
`+trainer.NAME=VALUE`.
"""


def lightning_page() -> str:
    """The whole page as Markdown."""
    return "\n".join([_HEAD, _table("callback", CALLBACKS), _table("flag", TRAINER)])


def _table(title: str, rows: Mapping[str, tuple[str, str]]) -> str:
    lines = [f"| {title} | verdict | why, or a note |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {'refused' if reason else 'works'} | {reason or note} |"
        for name, (reason, note) in rows.items()
    ]
    return "\n".join(lines) + "\n"
