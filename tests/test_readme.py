"""README.md is true: its example runs, its commands are those that CI and the package have."""

import re
import subprocess
import sys
import tomllib

import pytest

from support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].strip().splitlines()) <= 16
    subprocess.run([sys.executable, "-c", blocks[0]], check=True, cwd=tmp_path)


def test_ci_finds_exactly_one_test_command():
    lines = [x for x in README.splitlines() if re.match(r"python -m venv .*pytest", x)]
    assert len(lines) == 1
    assert "grep -m 1 -E '^python -m venv .*pytest' README.md" in (ROOT / ".ci/run").read_text()


def test_every_command_line_of_the_readme_composes():
    from qat.compose import checked, conf_folder

    commands = re.findall(r"^(?:python|qat-train) (?:train\.py )?([^#\n]*)", README, flags=re.M)
    runs = [c for c in commands if c.startswith(("quant", "model", "audit"))]
    assert len(runs) >= 5
    for command in runs:
        checked(conf_folder(), command.split())


def test_every_sweep_of_the_readme_is_planned(tmp_path, monkeypatch):
    from qat.spec.overrides import with_quoted_paths
    from qat.sweep.command import is_sweep, sweep

    def launch(*arguments):
        pytest.fail("a list launches nothing")

    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^(?:\S*bin/)?python train\.py ([^#\n]*)", README, flags=re.M)
    sweeps = [c.split() for c in commands if is_sweep(c.split(), multirun="-m" in c.split())]
    assert len(sweeps) >= 7
    for words in sweeps:
        own = with_quoted_paths([word for word in words if word != "-m"])
        assert sweep([*own, "sweep.list=true"], launch=launch)
    assert list(tmp_path.iterdir()) == []


def test_every_report_of_the_readme_is_understood():
    from qat.commands.options import read_arguments
    from qat.commands.report import ReportSpec

    lines = re.findall(r"^(?:\S*bin/)?python scripts/report\.py ([^#\n]*)", README, flags=re.M)
    assert len(lines) >= 4
    for line in lines:
        options = [word for word in line.split() if "=" in word]
        assert read_arguments(ReportSpec, options, example="")


def test_every_command_of_the_shipping_section_is_understood():
    from qat.commands.evaluate import EvaluateSpec
    from qat.commands.export import ExportSpec
    from qat.commands.options import read_arguments
    from qat.commands.predict import PredictSpec
    from qat.compose import conf_folder, group_option
    from qat.spec.overrides import with_quoted_paths

    section = README.partition("## Shipping")[2].partition("\n## ")[0]
    lines = re.findall(r"^python (scripts/)?(\w+)\.py ([^#\n]*)", section, flags=re.M)
    specs = {"export": ExportSpec, "evaluate": EvaluateSpec, "predict": PredictSpec}
    assert {name for folder, name, _ in lines if folder} == set(specs)
    for folder, name, text in lines:
        words = text.split()
        if folder:
            for path in [word for word in words if "=" not in word]:
                assert (ROOT / path).exists(), path
            options = [word for word in words if "=" in word]
            assert read_arguments(specs[name], options, example="")
        else:
            assert (ROOT / f"{name}.py").is_file()
            assert with_quoted_paths(words) == words
    assert group_option(conf_folder(), "quant", "bcgd_w1a4")


def test_the_package_names_what_the_readme_promises():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    commands = ("export", "evaluate", "predict", "report")
    assert project["scripts"] == {
        "qat-train": "qat.commands.train:main",
        **{f"qat-{name}": f"qat.commands.{name}:command" for name in commands},
    }
    names = {re.split(r"[<>=!\[ ]", line)[0] for line in project["dependencies"]}
    assert {"torch", "torchvision", "lightning", "hydra-core", "timm", "wandb"} <= names


def test_constraints_pin_every_direct_dependency():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in wanted:
        assert re.split(r"[<>=!\[ ]", requirement)[0].lower() in pinned, requirement


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_pages_name_only_files_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:qat|conf|tests|scripts)/[\w/]+\.(?:py|yaml))`", text):
        assert (ROOT / path).exists(), path
