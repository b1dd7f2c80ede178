"""Rehearsal of a sweep: what a job's own command would refuse, before the sweep has a folder."""

from multiprocessing import Pipe

import pytest

from qat.compose import composed, conf_folder
from qat.errors import SpecError
from qat.sweep import rehearsal

GLOB = "quant.overrides=[{match: 'nope*', weight: {bits: 4}}]"


def runs(*own):
    return [composed(conf_folder(), ["model=lenet5", *words]) for words in own]


def test_the_first_error_of_all_jobs_is_answered(monkeypatch):
    # pytest's own process is to hear Ctrl-C, that of the rehearsal is not
    monkeypatch.setattr(rehearsal.signal, "signal", lambda *_: None)
    here, there = Pipe()
    rehearsal._answer(runs(["seed=1"], ["seed=2", GLOB]), there)
    assert "match='nope*' matches no conv or linear layer" in here.recv()
    rehearsal._answer(runs(["seed=1"], ["seed=2"]), there)
    assert here.recv() == ""
    monkeypatch.setattr("qat.train.preflight.preflight", lambda *_: 1 / 0)
    rehearsal._answer(runs(["seed=1"]), there)
    assert here.recv() == "ZeroDivisionError: division by zero"


def test_what_needs_no_torch_is_answered_without_a_process(monkeypatch):
    monkeypatch.setattr(rehearsal, "process_context", lambda: pytest.fail("a process"))
    with pytest.raises(SpecError, match="LitLogger needs litlogger"):
        rehearsal.rehearse(runs(["+logger.x._target_=lightning.pytorch.loggers.LitLogger"]))
    rehearsal.rehearse([])


def test_a_lost_process_is_no_answer(monkeypatch):
    class Lost:
        def Pipe(self, duplex):
            return Pipe(duplex)

        def Process(self, target, args, daemon):
            return self

        def start(self):
            raise EOFError

    monkeypatch.setattr(rehearsal, "process_context", Lost)
    rehearsal.rehearse(runs(["seed=1"]))
