"""Large and hostile collections of runs: the page stays small, files stay where they belong."""

import pytest
import yaml

from qat.commands.report import file_names, main
from qat.report.page import family_section


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(family_section, "MOST_BY_LAYER", 3)


def test_layers_are_those_of_the_reference_and_the_best(make_run, tmp_path, few):
    for index, val in enumerate((0.6, 0.9, 0.5, 0.8, 0.7)):
        make_run(f"a{index}", val=val, changes={"optimizer.lr": index})
    words = [str(tmp_path / "runs"), f"out={tmp_path / 'out'}", "reference=bcgd_w1a4 lr=2"]
    make_run("f", val=0.1, quant="float", changes={"optimizer.lr": 9})
    main(words)
    page = (tmp_path / "out" / "index.html").read_text()
    opened = page.partition("Layer by layer")[2]
    assert [i for i in (*range(5), 9) if f"lr={i}</summary>" in opened] == [1, 2, 3]
    assert "Of 6 networks 3 are shown: the reference and the best on validation." in page


def test_a_few_networks_are_all_shown(make_run, tmp_path):
    for index in range(4):
        make_run(f"a{index}", changes={"optimizer.lr": index})
    main([str(tmp_path / "runs"), f"out={tmp_path / 'out'}"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert all(f"lr={index}</summary>" in page for index in range(4))
    assert "are shown: the reference" not in page


def test_mixtures_and_uncorrected_intervals_are_told_on_the_page(make_run, tmp_path):
    for seed in (1, 2, 3):
        make_run(f"a{seed}", seed=seed, test=0.9 + 0.01 * seed, code={"sources": "s1"})
        make_run(f"f{seed}", seed=seed, test=0.9, quant="float")
    main([str(tmp_path / "runs"), f"out={tmp_path / 'out'}"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "2 versions of the code: " in page
    first = page.partition("How the numbers are made</h2>")
    for part in (first[0], first[2]):  # near the table, and in the method
        assert "leave out 0" in part


@pytest.mark.parametrize("name", ["../../evil", "/etc/x", "a\0b", ".hidden", "x" * 999])
def test_names_out_of_runs_stay_in_the_folder(make_run, tmp_path, name):
    # both parts of a title are the run's
    changes = {"data.name": name, "model.name": name}
    make_run("a", changes=changes, overrides=["x"])
    cards = tmp_path / "deep" / "er" / "cards"
    main([str(tmp_path / "runs"), f"out={tmp_path / 'out'}", f"cards={cards}", "commit=abcdef0"])
    (card,) = (path for path in tmp_path.rglob("*.yaml") if path.parent.name != ".hydra")
    assert card.parent == cards
    assert not card.name.startswith((".", "-"))
    assert set(card.name) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
    )
    assert yaml.safe_load(card.read_text())["rows"]


def test_two_cards_never_share_a_file():
    titles = ["a/b, c", "a?b, c", "A-B, c", "digits, resnet20", "???", "", "..", "-rf", "\u65e5"]
    assert list(file_names(titles).values()) == [
        *("a-b_c", "a-b_c-2", "A-B_c-3", "digits_resnet20"),
        *("card", "card-2", "card-3", "rf", "card-4"),
    ]
