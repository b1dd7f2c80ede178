"""README.md, CONTRIBUTING.md and docs/ are true: what they name and promise is there."""

import re
import tomllib

import pytest

from support import ROOT
from support.pages import PAGES
from support.real_run import train

README = PAGES["README"].read_text(encoding="utf-8")
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEXTS = {
    **{path.relative_to(ROOT).as_posix(): path for path in PAGES.values()},
    **{name: ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")},
}


@pytest.mark.parametrize(("page", "most"), [("README.md", 150), ("CONTRIBUTING.md", 100)])
def test_pages_that_everyone_reads_are_short(page, most):
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= most


def test_the_python_examples_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    assert all(len(block.strip().splitlines()) <= 16 for block in blocks)
    (tmp_path / "example.py").write_text("\n".join(blocks))
    train(cwd=tmp_path, script=tmp_path / "example.py")


def test_ci_finds_exactly_one_test_command_and_one_docs_command():
    for pattern in (r"^python -m venv .*pytest", r"^\.venv/bin/pip .*sphinx-build"):
        assert len([x for x in README.splitlines() if re.match(pattern, x)]) == 1
    assert "grep -m 1 -E '^python -m venv .*pytest' README.md" in CI
    assert r"grep -m 1 -E '^\.venv/bin/pip .*sphinx-build' README.md" in CI


def test_the_package_names_what_the_readme_promises():
    commands = ("export", "evaluate", "predict", "report")
    assert PROJECT["scripts"] == {
        "qat-train": "qat.commands.train:main",
        **{f"qat-{name}": f"qat.commands.{name}:command" for name in commands},
    }
    names = {re.split(r"[<>=!\[ ]", line)[0] for line in PROJECT["dependencies"]}
    assert {"torch", "torchvision", "lightning", "hydra-core", "timm", "wandb"} <= names


def test_constraints_pin_every_direct_dependency():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    extras = PROJECT["optional-dependencies"]
    own = [line for extra in ("dev", "docs", "notebooks") for line in extras[extra]]
    for requirement in [*PROJECT["dependencies"], *own]:
        assert re.split(r"[<>=!\[ ]", requirement)[0].lower() in pinned, requirement


def prose(page):
    """A page without its fenced blocks, whose files may be made by the reader."""
    text = TEXTS[page].read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", TEXTS)
def test_pages_name_only_files_that_exist(page):
    folders = "qat|conf|tests|scripts|docs|notebooks|results"
    for path in re.findall(rf"`((?:{folders})/[\w/]+(?:\.\w+|/)?)`", prose(page)):
        assert "NAME" in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files_and_headings(page):
    folder = TEXTS[page].parent
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, heading = link.partition("#")
        target = folder / path if path else TEXTS[page]
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.M)
            slugs = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
            assert heading in slugs, link


@pytest.mark.parametrize("page", TEXTS)
def test_public_names_on_pages_exist(page):
    import qat

    for name in re.findall(r"`qat\.(\w+)`", prose(page)):
        is_room = (ROOT / "qat" / name).is_dir() or (ROOT / "qat" / f"{name}.py").is_file()
        assert is_room or name in qat.__all__, name


def test_every_room_has_its_row():
    table = TEXTS["CONTRIBUTING.md"].read_text(encoding="utf-8").partition("## The rooms")[2]
    rows = re.findall(r"^\| (`.*?`) \|", table.partition("\n## ")[0], flags=re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    folders = {path.parent.name for path in (ROOT / "qat").glob("*/__init__.py")}
    assert named == folders | {"errors", "names"}
