"""The examples in the docstrings of qat run and say what is true."""

import doctest
import importlib
import types
from pathlib import Path

import pytest

from support import ROOT

PROMPT = ">>> "


def prompts(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return sum(line.lstrip().startswith(PROMPT) for line in lines)


FILES = [path for path in sorted((ROOT / "qat").rglob("*.py")) if prompts(path)]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_examples(path):
    module = importlib.import_module(module_name(path))
    assert Path(module.__file__) == path
    result = doctest.testmod(module)
    assert result.failed == 0
    # none may stand where doctest does not look
    assert result.attempted == prompts(path)


def test_there_are_examples_and_a_wrong_one_fails():
    assert {"qat.functional.ste", "qat.functional.sign"} <= {module_name(p) for p in FILES}
    wrong = types.ModuleType("wrong", f"{PROMPT}1 + 1\n3\n")
    assert doctest.testmod(wrong, report=False) == (1, 1)


def test_every_coarse_derivative_has_its_example():
    from qat.functional.ste import ESTIMATORS

    for name, member in ESTIMATORS.items():
        text = member.slope.__doc__
        assert f"{PROMPT}{name}(" in text or f"in {name}(" in text, name
        assert "Source: " in text, name
