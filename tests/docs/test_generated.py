"""Pages that are made by scripts/pages.py: as they would be written, and whole."""

import re
import sys

import pytest
import yaml

from support import ROOT

OPTIONS = (ROOT / "docs/options.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([\w.\[\]]+)` \|(.*)\|$", OPTIONS, flags=re.MULTILINE)
# of no reader's concern: which class is built, and how
PLUMBING = ("_target_", "_partial_", "defaults")


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield __import__("pages")
    for name in ("pages", "options_page", "measured"):
        sys.modules.pop(name, None)


def test_generated_pages_are_as_they_would_be_written(pages):
    for name, text in pages.generated().items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, (
            f"{name}: run python scripts/pages.py"
        )


def keys_of(node, path):
    for name, child in node.items():
        if name.startswith("_") or name in PLUMBING or name == "hydra":
            continue
        own = f"{path}.{name}" if path else str(name)
        if isinstance(child, dict) and child:
            yield from keys_of(child, own)
        else:
            yield own


def config_keys():
    """Every key of conf/, dotted; recipes and sweeps set keys of other groups."""
    conf = ROOT / "conf"
    found = set()
    for path in conf.rglob("*.yaml"):
        group = path.parent.relative_to(conf).as_posix().replace("/", ".").strip(".")
        if group.startswith(("experiment", "debug", "hydra")):
            continue
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        if package := re.match(r"# @package (\S+)", text):
            group = package[1]
        if group == "sweep":
            content = {k: v for k, v in content.items() if k != "parameters"}
            found.add("sweep.parameters")
        found |= set(keys_of(content, group))
    return found


def test_every_key_of_conf_is_on_the_page_of_options():
    shown = {key for key, _ in ROWS}
    missing = sorted(key for key in config_keys() if key not in shown)
    assert not missing, missing
    assert len(shown) > 100


def test_every_file_of_conf_is_on_the_page_of_options():
    for path in (ROOT / "conf").rglob("*.yaml"):
        group = path.parent.relative_to(ROOT / "conf").as_posix()
        if group not in (".", "distill/parts") and not group.startswith("quant/"):
            assert f"`{group}={path.stem}`" in OPTIONS, path


def test_every_row_says_type_and_meaning():
    for key, row in ROWS:
        kind, _, meaning = (cell.strip() for cell in row.split(" | "))
        assert kind, key
        assert meaning, key
