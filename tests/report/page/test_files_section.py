"""The report's table of exported files: its numbers, what does not pay, strange content."""

import json

import pytest

from qat.report.compare.wording import NOTHING
from qat.report.page.files_section import files_section
from qat.report.page.html import page
from qat.storage.exported import note_file, note_latency

WHERE = {"rounds": 20, "threads": 2, "onnxruntime": "1.31", "processor": "a CPU"}


def files(run, **entries):
    for name, (size, entry, latency) in entries.items():
        path = run / "export" / f"{name}.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
        note_file(path, {"bytes": size, **entry})
        if latency:
            note_latency(path.parent, path.name, latency)


def timed(batch, fastest, float_):
    return {"batch": batch, "fastest": fastest, "float": float_, **WHERE}


def test_the_table_holds_what_was_measured(tmp_path):
    known = {
        "float_bytes": 1000,
        "accuracy": {"validation": 0.5, "test": 0.123456},
        "differ": {"validation": [0, 10], "test": [2, 20]},
    }
    times = [timed(1, 0.004, 0.002), timed(32, 0.01, 0.1)]
    files(tmp_path, fast=(100, known, times), other=(50, {}, []))
    (section,) = files_section(tmp_path)
    table, *texts = section.content
    assert table.head[-2:] == ("ms, batch 1", "ms, batch 32")
    assert table.rows == (
        ("fast.onnx", "100", "10.0 times", "50.00", "12.35", "0 of 10 + 2 of 20", "4 (2.00)",
         "10 (0.10)"),
        ("other.onnx", "50", NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING),
    )  # fmt: skip
    slow, origin = (text.text for text in texts)
    assert slow == "fast.onnx is small, but no faster than the float network at batch 1."
    assert origin.endswith("onnxruntime 1.31, 2 threads, a CPU.")


def test_without_files_there_is_no_section_and_without_times_the_command(tmp_path):
    assert files_section(tmp_path) == []
    files(tmp_path, fast=(100, {}, []))
    assert "scripts/latency.py run=" in files_section(tmp_path)[0].content[-1].text


@pytest.mark.parametrize(
    "strange",
    [
        {"accuracy": 3, "differ": "x", "float_bytes": "much"},
        {"differ": {"test": [1, 2, 3]}, "latency": [{"batch": "1"}, 3, {"batch": 1}]},
        {"latency": [{"batch": 1, "fastest": 0, "float": 1}], "accuracy": {"test": "nan"}},
        {"latency": {"batch": 1}, "float_bytes": -0.0},
    ],
)
def test_strange_content_spoils_no_page(tmp_path, strange):
    files(tmp_path, ok=(1, {"<b>": 1}, []))
    entries = json.loads((tmp_path / "export" / "files.json").read_text())
    (tmp_path / "export" / "<i>.onnx").write_bytes(b"xx")
    entries["<i>.onnx"] = {"bytes": 2, **strange}
    (tmp_path / "export" / "files.json").write_text(json.dumps(entries))
    text = page("a run", [], files_section(tmp_path))
    assert "&lt;i&gt;.onnx" in text
    assert "<i>" not in text
