"""Which kernels a run takes, and that it says and keeps them."""

import json

import pytest
import torch

from qat import set_runtime
from qat.errors import SpecError
from qat.functional import int8
from qat.spec.run import RuntimeSpec
from qat.storage.status import Status, read_status
from qat.train import runtime
from qat.train.runtime import LONG, integers_of, kernels_of
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
def test_the_rule_of_kernels(kernels, values, compiled, before, kind, reason):
    found = kernels_of(RuntimeSpec(kernels=kernels), values, compiled=compiled, before=before)
    assert found.value == kind
    assert reason in str(found)


@pytest.mark.parametrize(
    ("asked", "device", "compiled", "before", "fast", "works", "value", "reason"),
    [
        ("auto", "cpu", False, None, True, True, "auto", "in layers of codes where it pays"),
        ("auto", "cpu", False, "auto", False, True, "auto", "as the run began with"),
        ("auto", "cpu", False, None, False, True, "off", "no instructions for int8 sums"),
        ("auto", "cpu", False, None, True, False, "off", "as it computes other sums"),
        ("auto", "cpu", False, "on", False, True, "on", "as the run began with"),
        ("auto", "cpu", False, "off", True, True, "off", "as the run began with"),
        ("auto", "cpu", False, "on", True, False, "off", "as it computes other sums"),
        ("auto", "cpu", True, None, True, True, "off", "a compiled network multiplies floats"),
        ("auto", "cuda", False, None, True, True, "off", "nobody has measured it on GPUs"),
        ("auto", "cuda", False, None, True, False, "off", "as it computes other sums"),
        ("off", "cpu", False, "on", True, True, "off", "by runtime.integer_forward=off"),
        ("on", "cpu", False, None, False, True, "on", "by runtime.integer_forward=on"),
        (
            "on",
            "cpu",
            False,
            None,
            True,
            False,
            None,
            "other sums; use runtime.integer_forward=off",
        ),
        ("on", "cuda", False, None, True, True, "on", "by runtime.integer_forward=on"),
        ("on", "cpu", True, None, True, True, None, "a compiled network multiplies floats; use"),
    ],
)
def test_the_rule_of_integers(
    monkeypatch, asked, device, compiled, before, fast, works, value, reason
):
    monkeypatch.setattr(int8, "is_fast", lambda: fast)
    monkeypatch.setattr(int8, "reason_against", lambda _: "" if works else "it computes other sums")
    options = RuntimeSpec(integer_forward=asked)
    arguments = (options, torch.device(device))
    if value is None:
        with pytest.raises(SpecError, match=reason):
            integers_of(*arguments, compiled=compiled, before=before)
        return
    found = integers_of(*arguments, compiled=compiled, before=before)
    assert found.value == value
    assert reason in str(found)
    assert str(found).startswith("integer forward: ")


@pytest.mark.parametrize("asked", ["integer_forward=on", "backward=bf16"])
def test_a_compiled_network_multiplies_floats_alone(tmp_path, asked):
    words = *SMALL, *PLAIN, "training.compile=true", f"runtime.{asked}"
    shown = train(*words, cwd=tmp_path, code=2)
    assert f"runtime.{asked}: a compiled network multiplies floats" in shown


@pytest.mark.slow
def test_every_mode_resumes_bit_for_bit(tmp_path):
    asked = ("integer_forward=on", "backward=bf16", "memory_format=channels_last")
    words = (*SMALL, *PLAIN, SAVING, *(f"runtime.{word}" for word in asked))
    shown = train(*words, "hydra.run.dir=whole", cwd=tmp_path)
    assert "integer forward: on, by runtime.integer_forward=on" in shown
    assert "backward: bf16, in layers of codes" in shown
    kill_after(50, tmp_path / "cut", *words, cwd=tmp_path)
    train("resume=cut", cwd=tmp_path)
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


def test_where_inductor_cannot_compile_auto_goes_on_without(monkeypatch):
    def no_compiler(*arguments, **options):
        raise RuntimeError("no C++ compiler was found\nsecond line")

    monkeypatch.setattr(runtime, "staircase_ste", no_compiler)
    with set_runtime(kernels="eager"):
        why = runtime._reason_against(torch.device("cpu"))
    assert why == "no C++ compiler was found"


@pytest.mark.parametrize(
    ("option", "before", "now"),
    [("kernels", "fused", "eager"), ("integer_forward", "on", "off")],
)
def test_a_run_goes_on_with_its_runtime_or_says_so(tmp_path, option, before, now):
    Status(tmp_path, "abc").begin((), runtime={option: before})
    assert read_status(tmp_path)["runtime"] == {option: before}
    with pytest.raises(SpecError, match=rf"trained with {option}={before}, now it is {now}"):
        Status(tmp_path, "abc").begin((), runtime={option: now})
    Status(tmp_path, "abc").begin((f"runtime.{option}",), runtime={option: now})
    assert read_status(tmp_path)["runtime"] == {option: now}
    # a float run has none
    Status(tmp_path, "abc").begin(())
    assert Status(tmp_path, "abc").runtime == {}


def test_runs_of_before_there_was_a_choice(tmp_path):
    status = tmp_path / "status.json"
    assert Status(tmp_path, "abc").runtime == {}
    status.write_text('{"threads": null}')
    assert Status(tmp_path, "abc").runtime == {}
    status.write_text(json.dumps({"threads": torch.get_num_threads()}))
    assert Status(tmp_path, "abc").runtime == {"kernels": "eager", "integer_forward": "off"}
    status.write_text(json.dumps({"threads": torch.get_num_threads(), "kernels": "fused"}))
    assert Status(tmp_path, "abc").runtime == {"kernels": "fused", "integer_forward": "off"}


def test_a_short_run_says_that_it_is_eager_and_codes_change_no_bit(tmp_path):
    for saved in ("codes", "floats"):
        shown = train(
            *SMALL, *PLAIN, f"runtime.saved={saved}", f"hydra.run.dir={saved}", cwd=tmp_path
        )
        assert "kernels: eager, for" in shown
        assert "integer forward: " in shown
        assert "Warning" not in shown
        assert "overridden" not in shown  # nothing of Lightning's that does not concern a user
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
