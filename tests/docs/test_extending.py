"""The recipes of docs/extending.md: each is walked in a copy of the source, by its own blocks."""

import re
import shutil
import subprocess
import sys

import pytest

from support import ROOT, environment
from support.pages import PAGES, blocks, commands, kind_and_arguments

PAGE = PAGES["extending"].read_text(encoding="utf-8")
RECIPES = {
    title: text
    for title, text in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S)
    if "```" in text
}
COPIED = ("qat", "conf", "scripts", "docs", "results", "tests", "train.py", "README.md",
          "pyproject.toml", "constraints.txt", "CONTRIBUTING.md", "CHANGELOG.md")  # fmt: skip
HEAD = re.compile(r"# (?:new file: (?P<new>\S+)|(?P<old>\S+), (?P<how>below|above|in place of): )")


def copy(folder, names=COPIED):
    """The source in another folder, where recipes may change it."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


def follow(text, folder):
    """Do what the blocks of a recipe say; returns the files that they changed."""
    changed = []
    for block in blocks("extending", text):
        if block.language == "bash":
            continue
        head, _, code = block.text.partition("\n")
        match = HEAD.match(head)
        assert match, f"a block that does not say where it goes: {head}"
        path = folder / (match["new"] or match["old"])
        if match["new"]:
            assert not path.exists(), path
            path.write_text(code, encoding="utf-8")
        else:
            path.write_text(changed_text(path, match["how"], head[match.end() :], code))
        changed.append(path)
    return changed


def changed_text(path, how, anchor, code):
    """A file with `code` below, above or in place of the one line that begins with `anchor`."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [i for i, line in enumerate(lines) if line.strip().startswith(anchor)]
    assert len(found) == 1, f"{path.name}: {len(found)} lines begin with {anchor!r}"
    first = found[0] + (how == "below")
    if how == "above" and code.startswith("def "):
        code += "\n\n"
    lines[first : found[0] + (how != "above")] = [code]
    return "".join(lines)


def run(*words, cwd):
    done = subprocess.run(
        words, cwd=cwd, env=environment(PYTHONPATH=f"{cwd}:{cwd / 'tests'}"),
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_there_is_a_recipe_for_each_row_of_the_table_at_the_head():
    linked = re.findall(r"^\| \[.*?\]\(#(.*?)\) \|", PAGE, flags=re.M)
    assert [title.lower().replace(" ", "-") for title in RECIPES] == linked
    assert len(linked) == 6


COMPOSE = """
import sys
from qat.compose import composed, conf_folder
from qat.commands.export import ExportSpec
for line in sys.stdin.read().splitlines():
    name, *words = line.split()
    words = [w for w in words if not w.startswith("distill.teacher=")]
    if name == "train":
        composed(conf_folder(), words)
    else:
        ExportSpec(**dict(word.split("=") for word in words))

# every grid of the page's copy writes as it codes
import torch
from qat.nn.weight import WeightQuantizer
from qat.spec.quant import GRID_BITS
assert "odd" in GRID_BITS
for length in (9, 10_000):
    w = torch.randn(8, length)
    for grid, bits in GRID_BITS.items():
        q = WeightQuantizer(bits[0], "channel", grid)
        target = torch.empty_like(w)
        q.write([w], [target])
        assert torch.equal(target, q.decode(*q.encode(w))), grid
"""


def test_all_recipes_together_are_clean_code_and_their_commands_are_understood(tmp_path):
    copy(tmp_path)
    changed = [path for text in RECIPES.values() for path in follow(text, tmp_path)]
    python = [str(path) for path in changed if path.suffix == ".py"]
    for step in (["check", "-q"], ["format", "--check", "-q"]):
        run(sys.executable, "-m", "ruff", *step, *python, cwd=tmp_path)
    asked = [
        kind_and_arguments(c) for text in RECIPES.values() for c in commands("extending", text)
    ]
    lines = [" ".join([kind, *words]) for kind, words in asked if kind in ("train", "export")]
    assert len(lines) >= 9
    subprocess.run(
        [sys.executable, "-c", COMPOSE], input="\n".join(lines), text=True, check=True,
        cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path)),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_recipes_together_are_typed(tmp_path):
    copy(tmp_path)
    for text in RECIPES.values():
        follow(text, tmp_path)
    run(sys.executable, "-m", "mypy", "--cache-dir", "mypy", "qat", cwd=tmp_path)


def test_without_its_recipe_a_name_is_refused():
    from qat.compose import composed, conf_folder
    from qat.errors import QatError

    for word in ("data=bars", "distill=channel_mean", "training.z_loss=1", "quant.weight.grid=odd"):
        with pytest.raises(QatError):
            composed(conf_folder(), [word])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_walked_to_its_end(title, tmp_path):
    copy(tmp_path)
    follow(RECIPES[title], tmp_path)
    # what the head of the page asks for after any recipe, before the recipe's own commands
    for command in [*commands("extending", PAGE.partition("\n## ")[0]),
                    *commands("extending", RECIPES[title])]:  # fmt: skip
        kind, words = kind_and_arguments(command)
        if kind == "pytest":
            run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words, cwd=tmp_path)
        elif kind == "train":
            run(sys.executable, "train.py", *words, "debug=quick", cwd=tmp_path)
        else:
            run(sys.executable, f"scripts/{kind}.py", *words, cwd=tmp_path)
