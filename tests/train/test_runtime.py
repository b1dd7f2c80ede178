"""Which kernels a run takes, and that it says and keeps them."""

import json

import pytest
import torch

from qat import set_runtime
from qat.errors import SpecError
from qat.spec.run import RuntimeSpec
from qat.storage.status import Status, read_status
from qat.train import runtime
from qat.train.runtime import LONG, chosen
from support.real_run import PLAIN, SAVING, SMALL, differences, kill_after, train


@pytest.mark.parametrize(
    ("kernels", "values", "compiled", "before", "kind", "reason"),
    [
        ("auto", LONG, False, None, "fused", "for 1.0e+10 activations to quantize"),
        ("auto", LONG - 1, False, None, "eager", "auto: fused from 1e+10 on"),
        ("auto", LONG, False, "eager", "eager", "as the run began with"),
        ("auto", 1, False, "fused", "fused", "as the run began with"),
        ("auto", LONG, True, None, "eager", "compiled network"),
        ("fused", 1, False, None, "fused", "by runtime.kernels=fused"),
        ("eager", LONG, False, "fused", "eager", "by runtime.kernels=eager"),
    ],
)
def test_the_rule(kernels, values, compiled, before, kind, reason):
    found = chosen(RuntimeSpec(kernels=kernels), values, compiled=compiled, before=before)
    assert found.kind == kind
    assert reason in str(found)


def test_where_inductor_cannot_compile_auto_goes_on_without(monkeypatch):
    def no_compiler(*arguments, **options):
        raise RuntimeError("no C++ compiler was found\nsecond line")

    monkeypatch.setattr(runtime, "staircase_ste", no_compiler)
    with set_runtime(kernels="eager"):
        why = runtime._reason_against(torch.device("cpu"))
    assert why == "no C++ compiler was found"


def test_a_run_goes_on_with_its_kernels_or_says_so(tmp_path):
    Status(tmp_path, "abc").begin((), kernels="fused")
    assert read_status(tmp_path)["kernels"] == "fused"
    with pytest.raises(SpecError, match=r"trained with fused kernels, now they are eager"):
        Status(tmp_path, "abc").begin((), kernels="eager")
    Status(tmp_path, "abc").begin(("runtime.kernels",), kernels="eager")
    assert read_status(tmp_path)["kernels"] == "eager"
    # a float run has none, and one of before there was a choice was eager
    Status(tmp_path, "abc").begin((), kernels=None)
    (tmp_path / "status.json").write_text('{"threads": null}')
    old = Status(tmp_path, "abc")
    assert old.kernels is None
    (tmp_path / "status.json").write_text(json.dumps({"threads": torch.get_num_threads()}))
    assert Status(tmp_path, "abc").kernels == "eager"


def test_a_short_run_says_that_it_is_eager_and_codes_change_no_bit(tmp_path):
    for saved in ("codes", "floats"):
        shown = train(
            *SMALL, *PLAIN, f"runtime.saved={saved}", f"hydra.run.dir={saved}", cwd=tmp_path
        )
        assert "kernels: eager, for" in shown
    assert differences(tmp_path / "codes", tmp_path / "floats") == []


@pytest.mark.slow
def test_fused_kernels_resume_bit_for_bit(tmp_path):
    fused = (*SMALL, *PLAIN, SAVING, "runtime.kernels=fused")
    shown = train(*fused, "hydra.run.dir=whole", cwd=tmp_path)
    assert "kernels: fused, by runtime.kernels=fused" in shown
    kill_after(50, tmp_path / "cut", *fused, cwd=tmp_path)
    train("resume=cut", cwd=tmp_path)
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


@pytest.mark.slow
def test_another_kernel_is_refused_when_resuming(tmp_path):
    kill_after(20, tmp_path / "cut", *SMALL, *PLAIN, SAVING, cwd=tmp_path)
    shown = train("runtime.kernels=fused", "resume=cut", cwd=tmp_path, code=2)
    assert "runtime.kernels: auto -> fused" in shown
