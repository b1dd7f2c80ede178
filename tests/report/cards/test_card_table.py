"""Cards: what they hold, and the tables that pages get from them."""

import pytest

from qat.errors import DataError
from qat.report.cards.card import read_card, write_card
from qat.report.cards.card_table import card_table, with_tables

CARD = {
    "title": "digits, lenet5",
    "reference": "float",
    "tuned": "optimizer.lr",
    "origins": [
        {
            "code": {"commit": "abc", "sources": "123"},
            "machine": {"processor": "a processor", "cores": 2},
            "threads": 1,
            "versions": {"torch": "9"},
            "rows": ["float", "bcgd_w1a4"],
        }
    ],
    "claims": [],
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
    assert "best of 3 values" in lines[-1]
    assert lines[-1].endswith("a processor, 1 thread each, torch 9, commit abc.")


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"code": {"commit": "def"}, "threads": 8}, "8 threads each, commit def"),
        ({"versions": {"torch": "9", "brevitas": "1"}}, "brevitas 1"),
        ({"versions": {"torch": "10"}}, "torch 10"),
        ({"code": {"commit": "abc", "sources": "12ab"}}, "sources 12ab"),
    ],
)
def test_of_a_rarer_origin_the_rows_and_what_is_other_are_told(own, told):
    first = {**CARD["origins"][0], "rows": ["float", "more"]}
    other = {**CARD["origins"][0], "rows": ["bcgd_w1a4"], **own}
    last = card_table(CARD | {"origins": [first, other]}).splitlines()[-1]
    common = "a processor, 1 thread each, torch 9, commit abc."
    assert last.endswith(f"{common} `bcgd_w1a4`: {told}.")


def test_a_difference_of_nothing_has_no_minus():
    rows = [dict(row) for row in CARD["rows"]]
    gap = {"mean": -1e-17, "interval": [-0.2, 0.2], "p_corrected": 1.0}
    rows[1]["last"] = {**rows[1]["last"], "difference": gap}
    assert "+0.00 [-20.00, +20.00]" in card_table(CARD | {"rows": rows})


def test_rows_of_unequal_effort_say_so():
    rows = [dict(row) for row in CARD["rows"]]
    rows[0] = rows[0] | {"tuned": {"optimizer.lr": 0.1, "tried": 1}}
    assert "best of 1 to 3 values" in card_table(CARD | {"rows": rows})


def test_a_label_cannot_break_the_table():
    rows = [CARD["rows"][0] | {"label": "a|b`c"}]
    line = card_table(CARD | {"rows": rows}).splitlines()[2]
    assert line.count("|") == 9
    assert "`a/b c`" in line


def test_claims_stand_below_the_rows():
    gap = {"mean": 0.05, "interval": [0.01, 0.09], "p": 0.01, "p_corrected": 0.03}
    claim = {"better": "a", "worse": "b", "seeds": 3, "difference": gap, "reading": "holds"}
    table = card_table(CARD | {"claims": [claim]})
    assert "| `a` > `b` | 3 | +5.00 [+1.00, +9.00] | 0.030 | holds |" in table


def test_a_page_gets_its_tables_and_keeps_the_rest(tmp_path):
    write_card(tmp_path / "results" / "a.yaml", CARD)
    assert read_card(tmp_path / "results" / "a.yaml") == CARD
    page = "before\n<!-- card: results/a.yaml -->\nold\n<!-- end of card -->\nafter\n"
    filled = with_tables(page, tmp_path)
    assert filled == page.replace("old\n", card_table(CARD))
    assert with_tables(filled, tmp_path) == filled
    assert with_tables("nothing\n", tmp_path) == "nothing\n"


@pytest.mark.parametrize("content", ["rows: []\ntitle: x\n", "[1]\n", "a: [\n"])
def test_what_is_no_card_is_one_line(content, tmp_path):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(DataError, match="is no card"):
        with_tables("<!-- card: a.yaml -->\n<!-- end of card -->", tmp_path)


def test_a_comment_without_its_end_is_refused(tmp_path):
    with pytest.raises(DataError, match="end of card"):
        with_tables("<!-- card: a.yaml -->\nand nothing", tmp_path)
