"""The page of every option: read out of the typed specs and the files of conf/."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from qat.compose import conf_folder, group_option
from qat.spec.data import DataSpec
from qat.spec.distill import DistillSpec
from qat.spec.initial import InitSpec
from qat.spec.keys import flat
from qat.spec.model import SmallOptions, TimmOptions, TorchvisionOptions
from qat.spec.quant import Override, QuantSpec
from qat.spec.run import (
    EmaSpec,
    RunSpec,
    RuntimeSpec,
    SchedulerSpec,
    TrainingSpec,
    WarmStartSpec,
)
from qat.spec.schema import Declared, declared
from qat.spec.sweep import SweepSpec
from qat.spec.unlabelled import UnlabelledSpec

_HEAD = """# Every option

<!-- written by scripts/pages.py from qat/spec/ and conf/; not by hand -->

A run is configured by groups, one file of `conf/` each (`GROUP=FILE`), and by keys (`KEY=VALUE`).
Both stand behind `python train.py`, in any order. `python train.py --help` prints the config that
a command asks for, with its values; a key that does not exist, and a value that is not allowed, are
answered within a second with what is. Texts that hold `,`, `=` or brackets are put in quotes.

`null` is no value. Where files of a group say different things, the column *default* names them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One key of the page."""

    key: str
    values: str
    default: str
    meaning: str


def options_page() -> str:
    """The whole page as Markdown."""
    conf = conf_folder()
    sections = [
        _whole_run(conf),
        _files(conf, "model", "The network."),
        _table(_spec_rows(SmallOptions, "model", []), "`lenet5`, `vgg11`, `resnet20` to `110`"),
        _table(_spec_rows(TorchvisionOptions, "model", []), "`resnet18`, `34`, `50`"),
        _table(_spec_rows(TimmOptions, "model", []), "`model=timm`"),
        _data_files(conf),
        _table(_spec_rows(DataSpec, "data", _option_files(conf, "data"))),
        _quant_files(conf),
        _table(_spec_rows(QuantSpec, "quant", [], group_option(conf, "quant", "bcgd_w1a4"))),
        _table(_override_rows()),
        _files(conf, "distill", "What to learn from a teacher; left out, labels alone."),
        _table(_spec_rows(DistillSpec, "distill", [conf / "distill/parts/base.yaml"])),
        _files(conf, "unlabelled", "Images without labels; several as `unlabelled=[task,folder]`."),
        _table(_spec_rows(UnlabelledSpec, "unlabelled", _option_files(conf, "unlabelled"))),
        _files(conf, "init", "Weights put on their grids from images, before any training; left "
               "out, the update rule does that. See [post-training](post_training.md)."),
        _table(_spec_rows(InitSpec, "init", _option_files(conf, "init"))),
        _files(conf, "optimizer", "A class of `torch.optim` or `timm.optim`; further arguments of "
               "the class are given as `+optimizer.NAME=VALUE`."),
        _table(_file_rows(conf, "optimizer")),
        _files(conf, "scheduler", "The factor of the learning rate; it begins anew with the "
               "quantized phase."),
        _table(_spec_rows(SchedulerSpec, "scheduler", _option_files(conf, "scheduler"))),
        _files(conf, "trainer", "Arguments of `lightning.Trainer`; others that it has are given as "
               "`+trainer.NAME=VALUE`, except those that the run sets itself."),
        _table(_file_rows(conf, "trainer")),
        _files(conf, "logger", "Loggers beside `metrics.csv`."),
        _table(_file_rows(conf, "logger")),
        _files(conf, "callbacks", "What is looked at while it trains; `callbacks.NAME=null` leaves "
               "one out."),
        _table(_file_rows(conf, "callbacks")),
        _files(conf, "sweep", "Many runs; heard with `-m` or `sweep=FILE`."),
        _table(_spec_rows(SweepSpec, "sweep", [])),
        _files(conf, "hydra/launcher", "Where the jobs of a sweep run; left out, here."),
        _table(_file_rows(conf, "hydra/launcher")),
        _files(conf, "experiment", "Recipes: each sets groups and keys. The head of its file says "
               "where the numbers come from and whether it was run."),
        _files(conf, "debug", "Short runs."),
    ]  # fmt: skip
    return "\n".join([_HEAD, *sections])


def _whole_run(conf: Path) -> str:
    comments, values = _comments(conf / "config.yaml"), _values(conf / "config.yaml")
    options, texts = {o.key: o for o in declared(RunSpec)}, _attributes(RunSpec)
    top = [
        Row(
            key=key,
            values=_kind(options[key]) if key in options else "list: text",
            default=_code(values[key]),
            meaning=texts.get(key) or comments[key],
        )
        for key in values
        if not isinstance(values[key], Mapping) and key != "defaults"
    ]
    rows = [
        *top,
        *_spec_rows(WarmStartSpec, "warm_start", [], values["warm_start"]),
        *_spec_rows(TrainingSpec, "training", [], values["training"]),
        *_spec_rows(EmaSpec, "ema", [], values["ema"]),
        *_spec_rows(RuntimeSpec, "runtime", [], values["runtime"]),
    ]
    chosen = ", ".join(
        f"`{group}={name}`" for d in values["defaults"] if d != "_self_"
        for group, name in d.items() if name is not None
    )  # fmt: skip
    return f"## The run\n\nChosen if nothing is said: {chosen}.\n\n{_table(rows)}"


def _files(conf: Path, group: str, text: str) -> str:
    """The files of a group, each with what its first comment says."""
    rows = []
    for path in _option_files(conf, group):
        said = " ".join(_what_it_is(path))
        rows.append(f"| `{group}={path.stem}` | {_cell(said)} |")
    return f"## `{group}=`\n\n{text}\n\n| file | what it is |\n|---|---|\n" + "\n".join(rows) + "\n"


def _what_it_is(path: Path) -> Iterator[str]:
    """The comment at the head of a file of conf/, without its commands and Hydra's line."""
    text = path.read_text(encoding="utf-8")
    head = re.match(r"(#.*\n)*", text)[0].splitlines()  # type: ignore[index]
    lines = [line.lstrip("# ") for line in head]
    if path.parent.name == "experiment":
        yield "run here:" if any(line.startswith("Run here") for line in lines) else "not run here:"
        yield _settings(path)
    else:
        yield from (line for line in lines if not line.startswith(("python ", "@package")))


def _settings(path: Path) -> str:
    """The options that a recipe chooses."""
    defaults = _values(path).get("defaults", [])
    chosen = [d if isinstance(d, Mapping) else {"experiment": d} for d in defaults]
    return ", ".join(
        f"`{key.removeprefix('override ').lstrip('/')}={name}`"
        for default in chosen for key, name in default.items() if name != "_self_"
    )  # fmt: skip


def _data_files(conf: Path) -> str:
    """The data sets with what they differ in."""
    lines = ["| file | what it is | pixels | augmentation |", "|---|---|---|---|"]
    for path in _option_files(conf, "data"):
        said = _comments(path)
        pixels = re.search(r"own, (\d+)", said.get("image_size", ""))
        augment = said.get("augment", "").removeprefix("training images: ")
        what = _cell(" ".join(_what_it_is(path)))
        lines.append(f"| `data={path.stem}` | {what} | {pixels[1] if pixels else ''} | {augment} |")
    return "## `data=`\n\nThe images.\n\n" + "\n".join(lines) + "\n"


def _quant_files(conf: Path) -> str:
    """The files of the group quant with what each of them composes to."""
    lines = ["| file | rule | weights | activations |", "|---|---|---|---|"]
    for path in _option_files(conf, "quant"):
        spec = QuantSpec.from_dict(group_option(conf, "quant", path.stem))
        weight, activation = spec.weight, spec.activation
        method = "" if not weight.is_in_graph else f", {weight.method}"
        w = f"{weight.bits} bits{method}" if weight.is_quantized else "float"
        a = f"{activation.bits} bits, {activation.kind}" if activation.is_quantized else "float"
        w, a = (text.replace("1 bits", "1 bit") for text in (w, a))
        lines.append(f"| `quant={path.stem}` | `{spec.rule.name}` | {w} | {a} |")
    parts = [
        f"`quant/{part}=`: "
        + ", ".join(f"`{p.stem}`" for p in _option_files(conf, f"quant/{part}"))
        for part in ("rule", "bits", "method")
    ]
    return (
        "## `quant=`\n\nWhat lives on few levels, and the rule that moves it. Each file is put "
        f"together from parts ({'; '.join(parts)}). Defaults below are those of "
        "`quant=bcgd_w1a4`.\n\n" + "\n".join(lines) + "\n"
    )


def _override_rows() -> list[Row]:
    texts = {
        "match": "glob on dotted module names; the last match wins",
        "weight": "keys of `quant.weight` that are other there",
        "activation": "keys of `quant.activation` that are other there",
    }
    return [
        Row(key=f"quant.overrides[i].{option.key}", values=_kind(option),
            default="must be given" if option.key == "match" else "`{}`", meaning=texts[option.key])
        for option in declared(Override)
    ]  # fmt: skip


def _spec_rows(cls: type[Any], path: str, files: Sequence[Path], values: Any = None) -> list[Row]:
    """A row for each plain field of a spec; groups inside are walked.

    Args:
        cls: of the spec.
        path: dotted key of the group.
        files: of the group, whose values are the defaults.
        values: in place of files, the defaults themselves.
    """
    given = flat(values, path) if isinstance(values, Mapping) else {}
    rows = []
    for option in declared(cls, path):
        if option.is_group:
            continue
        default = _in_files(option.key, files) or _of_field(option.field)
        said = _attributes(option.owner).get(option.field.name)
        rows.append(
            Row(
                key=option.key,
                values=_kind(option),
                default=_code(given[option.key]) if option.key in given else default,
                meaning=said or _comment(option.key, files),
            )
        )
    return rows


def _in_files(key: str, files: Sequence[Path]) -> str:
    """The value of a key in the files of its group: once if it is the same in all that have it."""
    found: dict[str, list[str]] = {}
    for file in files:
        own = flat(_values(file), key.partition(".")[0])
        if key in own:
            found.setdefault(_code(own[key]), []).append(file.stem)
    if len(found) < 2:
        return next(iter(found), "")
    if all(len(names) == 1 for names in found.values()):
        return "the file's own"
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in found.items())


def _of_field(field: Any) -> str:
    if field.default is not MISSING:
        return _code(field.default)
    return "must be given" if field.default_factory is MISSING else _code(field.default_factory())


def _comment(key: str, files: Sequence[Path]) -> str:
    found = (_comments(file, key.partition(".")[0]).get(key) for file in files)
    return next((comment for comment in found if comment), "")


def _file_rows(conf: Path, group: str) -> list[Row]:
    """Rows of a group without a spec: values and comments of its files."""
    rows: dict[str, Row] = {}
    for path in _option_files(conf, group):
        root = group.replace("/", ".")
        comments = _comments(path, root)
        for key, value in flat(_values(path), root).items():
            if key.endswith(("_target_", "_partial_")) or ".defaults" in key or key == group:
                continue
            own = _code(value) + ("" if len(_option_files(conf, group)) == 1 else f" ({path.stem})")
            earlier = rows.get(key)
            default = own if earlier is None else f"{earlier.default}; {own}"
            meaning = comments.get(key, "") or (earlier.meaning if earlier else "")
            rows[key] = Row(
                key=key, values=_plain(value, meaning), default=default, meaning=meaning
            )
    return list(rows.values())


def _table(rows: Sequence[Row], title: str = "") -> str:
    lines = ["| key | type and values | default | meaning, unit |", "|---|---|---|---|"]
    lines += [
        f"| `{row.key}` | {row.values} | {row.default} | {_cell(row.meaning)} |" for row in rows
    ]
    return (f"{title}\n\n" if title else "") + "\n".join(lines) + "\n"


def _kind(option: Declared) -> str:
    """What an option takes, in words."""
    values = ", ".join(map(_code, option.choices)) or _type(option.kind, option.field.metadata)
    return f"{values}, or `null`" if option.is_optional else values


def _type(kind: Any, limits: Mapping[str, Any]) -> str:
    """A type in words."""
    if get_origin(kind) is tuple:
        return f"list: {_type(get_args(kind)[0], limits)}"
    if get_origin(kind) is Literal:
        return ", ".join(map(_code, get_args(kind)))
    if kind in (int, float):
        return ("integer" if kind is int else "number") + _range(limits)
    return {bool: "`true`, `false`", str: "text"}.get(kind, "group of keys")


def _plain(value: Any, meaning: str) -> str:
    """What a key without a spec takes, from its value in conf/; of null, from its comment."""
    if value is None:
        return f"{'number' if meaning.startswith('number') else 'text'}, or `null`"
    if isinstance(value, bool):
        return "`true`, `false`"
    kinds = {int: "integer", float: "number", str: "text", list: "list", dict: "group of keys"}
    return kinds.get(type(value), "")


def _range(limits: Mapping[str, Any]) -> str:
    low, high = limits.get("low"), limits.get("high")
    if low is not None and high is not None:
        return f", {low:,} .. {high:,}"
    words = {"above": "&gt;", "low": "&ge;", "below": "&lt;", "high": "&le;"}
    parts = [f"{w} {limits[k]}" for k, w in words.items() if limits.get(k) is not None]
    return f" {', '.join(parts)}" if parts else ""


def _attributes(cls: type[Any]) -> dict[str, str]:
    """Field -> its text in the section Attributes of a docstring."""
    section = (cls.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        head = re.match(r" {8}(\w+): (.*)", line)
        if head:
            name = head[1]
            found[name] = head[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return {key: re.sub(r"see `?\w+`?[,;.]? ?", "", text) for key, text in found.items()}


def _option_files(conf: Path, group: str) -> list[Path]:
    return sorted((conf / group).glob("*.yaml"))


def _values(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    values.pop("hydra", None)
    return values


def _comments(path: Path, root: str = "") -> dict[str, str]:
    """Dotted key -> the comment behind it in a file of conf/."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"^( *)([\w.]+):(?: +(?!#)[^#]*?)?(?: +# (.*))?$", line)
        if not match:
            continue
        indent, name, comment = len(match[1]), match[2], match[3]
        parents = [p for p in parents if p[0] < indent] + [(indent, name)]
        key = ".".join(p[1] for p in parents)
        if comment:
            found[f"{root}.{key}" if root else key] = comment
    return found


def _code(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(str(item) for item in value)}]`"
    return f"`{re.sub('e-0', 'e-', str(value))}`"


def _cell(text: str) -> str:
    """A text in a cell of a table; what is no code in it cannot become markup."""
    parts = text.strip().rstrip(".").replace("|", "\\|").split("`")
    parts[::2] = [re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", p).replace("<", "&lt;") for p in parts[::2]]
    return "`".join(parts)
