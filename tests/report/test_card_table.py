"""Cards: what they hold, and the tables that pages get from them."""

import pytest

from qat.errors import DataError
from qat.report.card import read_card, write_card
from qat.report.card_table import card_table, with_tables

CARD = {
    "title": "digits, lenet5",
    "reference": "float",
    "tuned": "optimizer.lr",
    "code": {"commit": "abc", "sources": "123"},
    "machine": {"processor": "a processor", "cores": 2},
    "threads": 1,
    "versions": {"torch": "9"},
    "runs": 4,
    "seconds": 60,
    "rows": [
        {
            "label": "float",
            "seeds": [1, 2],
            "tuned": {"optimizer.lr": 0.1, "tried": 3},
            "last": {"test": {"mean": 0.5, "sd": 0.01}, "difference": None},
            "selected": None,
            "cost": {"bytes": 1234},
        },
        {
            "label": "bcgd_w1a4",
            "seeds": [1, 2],
            "tuned": {"optimizer.lr": 0.03, "tried": 3},
            "last": {
                "test": {"mean": 0.4, "sd": 0.02},
                "difference": {"mean": -0.1, "interval": [-0.2, 0.0], "p_corrected": 0.02},
            },
            "selected": {"test": {"mean": 0.45, "sd": None}},
            "cost": {"bytes": None},
        },
    ],
}  # fmt: skip


def test_a_row_is_what_the_card_says():
    lines = card_table(CARD).splitlines()
    assert lines[2].split("|")[1:-1] == [
        " `float` ", " 0.1 ", " 2 ", " 50.00 ± 1.00 ", " – ", " – ", " – ", " 1,234 ",  # noqa: RUF001
    ]  # fmt: skip
    assert "-10.00 [-20.00, +0.00] | 0.020 | 45.00 |" in lines[3]
    assert "of 3 values" in lines[-1]
    assert "commit abc" in lines[-1]


def test_a_page_gets_its_tables_and_keeps_the_rest(tmp_path):
    write_card(tmp_path / "results" / "a.yaml", CARD)
    assert read_card(tmp_path / "results" / "a.yaml") == CARD
    page = "before\n<!-- card: results/a.yaml -->\nold\n<!-- end of card -->\nafter\n"
    filled = with_tables(page, tmp_path)
    assert filled == page.replace("old\n", card_table(CARD))
    assert with_tables(filled, tmp_path) == filled
    assert with_tables("nothing\n", tmp_path) == "nothing\n"


@pytest.mark.parametrize("content", ["rows: 3\ntitle: x\n", "[1]\n", "a: [\n"])
def test_what_is_no_card_is_one_line(content, tmp_path):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(DataError, match="is no card"):
        with_tables("<!-- card: a.yaml -->\n<!-- end of card -->", tmp_path)


def test_a_comment_without_its_end_is_refused(tmp_path):
    with pytest.raises(DataError, match="end of card"):
        with_tables("<!-- card: a.yaml -->\nand nothing", tmp_path)
