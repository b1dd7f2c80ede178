"""The wheel holds what a command needs: code, stub, templates, and conf/ as qat/conf."""

import zipfile

from hatchling.build import build_wheel

from support import ROOT


def files_below(folder, name):
    paths = (p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {f"{name}/{path.relative_to(ROOT / folder).as_posix()}" for path in paths}


def test_the_wheel_holds_code_templates_and_conf(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("qat/")}
    code = files_below("qat", "qat")
    peers = {name for name in code if name.startswith("qat/peers/")}
    assert "qat/report/page/templates/page.html.j2" in code
    # without the marker every type of an installed qat is Any to its users
    assert {"qat/py.typed", "qat/__init__.pyi"} <= held
    assert held == (code - peers) | files_below("conf", "qat/conf")
