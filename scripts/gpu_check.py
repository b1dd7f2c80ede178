"""What a GPU makes of qat, in eight minutes: its tests, a benchmark, two trainings; one JSON.

    python scripts/gpu_check.py
    python scripts/gpu_check.py device=cpu minutes=4     a rehearsal where there is no GPU

    device=cuda          or cpu
    minutes=8            that all of it may take; a part that runs out says so and is ended
    parts=[trainings,benchmark,tests]
    batch=null           images of the benchmark; null: 256 on a GPU, 8 on a CPU
    select=              tests by pytest's -k
    out=gpu_check.json   written anew after each part

The tests are those marked gpu, of products the rows that cover them (pytest -m "gpu and not slow";
extra dev). The benchmark trains ResNet-18 on noise of 64 x 64 pixels, float and W1A4, eager, fused
and compiled, in float32 and bfloat16: ms of a step, images a second, peak memory. The trainings are
real runs, each a second time with a stop on the way: they must end on the same bits. Exit code 0 if
all passed, 1 if something failed, 2 if time ran out.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qat.commands.options import read_arguments, run_command
from qat.errors import SpecError
from qat.spec.schema import check, option

_ROOT = Path(__file__).resolve().parents[1]
Part = Literal["trainings", "benchmark", "tests"]
# of the time that is left when a part begins, against the parts after it
_SHARES: dict[Part, float] = {"trainings": 2.0, "benchmark": 2.0, "tests": 4.0}
_MODES = "float,float_compiled,eager,fused,compiled,float_bf16,bf16_eager,bf16"
_TRAININGS = {
    "lenet5 on digits": ("model=lenet5", "trainer.max_epochs=6", "warm_start.epochs=1"),
    "resnet20 on glyphs": (
        "model=resnet20", "data=glyphs", "trainer.max_epochs=2", "warm_start.epochs=1",
        "trainer.limit_train_batches=12", "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=2",
    ),
}  # fmt: skip
_COMMON = (
    "training.checkpoint_every=4", "trainer.deterministic=true", "callbacks.diagnostics=null",
    "callbacks.records=null",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSpec:
    """Options of the command; see the module's text."""

    device: Literal["cuda", "cpu"] = "cuda"
    minutes: float = option(8.0, above=0)
    parts: tuple[str, ...] = ("trainings", "benchmark", "tests")
    batch: int | None = option(None, low=1)
    select: str = ""
    out: str = "gpu_check.json"
    # of one part, in a process of its own
    only: Literal["trainings", "benchmark"] | None = None

    def __post_init__(self) -> None:
        check(self, "")
        if not self.parts:
            raise SpecError(f"parts=[] checks nothing; parts are {', '.join(get_args(Part))}")
        for part in self.parts:
            if part not in get_args(Part):
                raise SpecError(f"parts={part} is unknown; parts are {', '.join(get_args(Part))}")


def main(arguments: Sequence[str]) -> None:
    """Check, write, and say what was found."""
    begin = time.monotonic()
    spec = read_arguments(CheckSpec, arguments, example="device=cpu")
    import torch

    if spec.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device=cuda, and PyTorch sees no GPU; rehearse with device=cpu")
    if spec.only is not None:
        for found in _OWN[spec.only](spec):
            print(json.dumps(found), flush=True)
        return
    # parts stand in sessions of their own, which nothing but this process ends
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report: dict[str, Any] = {"device": spec.device, "minutes": spec.minutes, **_facts(spec)}
    report["parts"] = {}
    try:
        _write(spec.out, report)
    except OSError as error:
        raise SpecError(f"out={spec.out} cannot be written: {error.strerror}") from None
    waiting = [part for part in get_args(Part) if part in spec.parts]
    while waiting:
        left = spec.minutes * 60 - (time.monotonic() - begin)
        share = _SHARES[waiting[0]] / sum(_SHARES[part] for part in waiting)
        part = waiting.pop(0)
        found = report["parts"][part] = _checked(part, spec, max(1.0, left * share))
        print(
            f"{part}: {found['verdict']} in {found['seconds']:.0f} s; {found['told']}", flush=True
        )
        report["seconds"] = round(time.monotonic() - begin, 1)
        report["verdict"] = _worst(p["verdict"] for p in report["parts"].values())
        _write(spec.out, report)
    print(f"{report['verdict']}: {spec.out}")
    raise SystemExit(("passed", "failed", "ran out").index(report["verdict"]))


def _worst(verdicts: Any) -> str:
    found = set(verdicts)
    return next(v for v in ("failed", "ran out", "passed") if v in found)


def _write(path: str, report: Mapping[str, Any]) -> None:
    from qat.storage.atomic import write_whole

    write_whole(Path(path), json.dumps(report, indent=1) + "\n")


def _facts(spec: CheckSpec) -> dict[str, Any]:
    """What was checked, on what."""
    import torch

    from qat.storage.provenance import code_version, machine, versions

    found = {"commit": code_version().commit, "machine": machine(), "versions": versions()}
    if spec.device != "cuda":
        return found
    names = "driver_version,memory.total,clocks.max.sm"
    ask = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):  # as in some containers
        told = []
    count = torch.cuda.device_count()
    return found | {
        "gpus": [torch.cuda.get_device_name(number) for number in range(count)],
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        names: told,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def _checked(part: Part, spec: CheckSpec, seconds: float) -> dict[str, Any]:
    """A part in a process of its own, for so many seconds at most."""
    begin = time.monotonic()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(_ROOT), str(_ROOT / "tests"))),
        "QAT_GPU_TESTS_ON": spec.device,
        "PYTHONUNBUFFERED": "1",
    }
    with (
        tempfile.TemporaryDirectory() as place,  # of a part that is ended, too
        tempfile.TemporaryFile("w+", encoding="utf-8") as said,
    ):
        environment["TMPDIR"] = place
        command = _pytest(spec) if part == "tests" else _itself(part, spec)
        code = _ended(command, seconds, stdout=said, stderr=subprocess.STDOUT, env=environment)
        said.seek(0)
        text = said.read()
    read = _outcomes if part == "tests" else _lines
    results = read(text)
    is_wrong = code not in (None, 0) or any(r["outcome"] == "failed" for r in results)
    verdict = "failed" if is_wrong else "ran out" if code is None else "passed"
    counts = {o: sum(r["outcome"] == o for r in results) for o in ("passed", "failed", "skipped")}
    return {
        "verdict": verdict,
        "seconds": round(time.monotonic() - begin, 1),
        "limit": round(seconds, 1),
        "told": ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        or "nothing",
        "results": results,
        **({"end": text[-6000:]} if verdict == "failed" else {}),
    }


def _ended(command: Sequence[str], seconds: float, **options: Any) -> int | None:
    """Exit code of a command; None where it was ended with all that it had started."""
    process = subprocess.Popen(command, cwd=_ROOT, start_new_session=True, **options)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _itself(part: Part, spec: CheckSpec) -> list[str]:
    batch = [] if spec.batch is None else [f"batch={spec.batch}"]
    return [sys.executable, __file__, f"device={spec.device}", f"only={part}", *batch]


def _lines(text: str) -> list[dict[str, Any]]:
    """What a part has told, among what libraries have."""
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"name"')]


# -- tests ----------------------------------------------------------------------------------------


def _pytest(spec: CheckSpec) -> list[str]:
    workers = min(4, (os.cpu_count() or 1) // 4)
    chosen = ["-k", spec.select] if spec.select else []
    own = ["tests/gpu", "-m", "gpu and not slow", "-v", "--tb=short", "-p", "no:cacheprovider"]
    # most of their time are commands of one file
    return [sys.executable, "-m", "pytest", *own, *chosen, "-n", str(workers), "--dist=load"]


def _outcomes(text: str) -> list[dict[str, Any]]:
    """Tests by name, from what pytest prints as each of them ends, alone or among workers."""
    words = "PASSED|FAILED|SKIPPED|ERROR"
    alone = re.findall(rf"^(tests/gpu/\S+::.+?) ({words})", text, flags=re.MULTILINE)
    workers = re.findall(
        rf"^\[gw\d+\] \[ *\d+%\] ({words}) (tests/gpu/.+)$", text, flags=re.MULTILINE
    )
    found = dict(alone) | {name.strip(): word for word, name in workers}
    named = {"PASSED": "passed", "SKIPPED": "skipped"}
    return [{"name": name, "outcome": named.get(word, "failed")} for name, word in found.items()]


# -- benchmark ------------------------------------------------------------------------------------


def _benchmark(spec: CheckSpec) -> Iterator[dict[str, Any]]:
    """A step of ResNet-18 in each mode: warmed up, then the median of ten."""
    import torch
    from contenders import MODES, Contender

    from qat import QuantSpec
    from qat.compose import conf_folder, group_option

    quant = QuantSpec.from_dict(group_option(conf_folder(), "quant", "bcgd_w1a4"))
    batch = spec.batch or (256 if spec.device == "cuda" else 8)
    for name in _MODES.split(","):
        mode = MODES[name]
        told = {"name": f"{'float' if mode.is_float else 'W1A4'}: {mode.title}", "batch": batch}
        torch.compiler.reset()
        try:
            options = None if mode.is_float else quant
            made = Contender("resnet18", options, mode, "nchw", batch=batch, device=spec.device)
            yield told | _figures(made, batch)
            del made
        except Exception as error:  # one mode says what it cannot, the others go on
            yield told | {"outcome": "failed", "error": f"{type(error).__name__}: {error}"[:600]}


def _figures(made: Any, batch: int) -> dict[str, Any]:
    import torch

    is_cuda = made.device == "cuda"
    begin = time.perf_counter()
    for _ in range(3):
        made.step()
    first = time.perf_counter() - begin
    if is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    times = [sum(made.step()) for _ in range(10)]
    peak = torch.cuda.max_memory_allocated() - before if is_cuda else None
    middle, loss = statistics.median(times), float(made.forward())
    return {
        "outcome": "passed" if loss < float("inf") else "failed",
        "step_ms": round(1e3 * middle, 3),
        "images_per_second": round(batch / middle, 1),
        "peak_bytes": peak,
        "kept_bytes": None if made.mode.compiled else made.saved_bytes(),
        "first_steps_s": round(first, 1),
        "loss": loss,
    }


# -- trainings ------------------------------------------------------------------------------------


def _trainings(spec: CheckSpec) -> Iterator[dict[str, Any]]:
    """Each run whole, then stopped on the way and gone on with."""
    device = f"trainer.accelerator={'gpu' if spec.device == 'cuda' else 'cpu'}"
    for name, options in _TRAININGS.items():
        with tempfile.TemporaryDirectory() as place:
            whole, parted = Path(place) / "whole", Path(place) / "parted"
            words = (*options, *_COMMON, device)
            begin = time.monotonic()
            _train(*words, f"hydra.run.dir={whole}").check_returncode()
            seconds = time.monotonic() - begin
            _stop_on_the_way(parted, *words)
            _train(f"resume={parted}").check_returncode()
            different = _differences(whole, parted)
            summary = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
            yield {
                "name": name,
                "outcome": "failed" if different else "passed",
                "seconds": round(seconds, 1),
                "resume_is_bitwise": not different,
                "different": different[:5],
                "fit_seconds": round(summary["fit_seconds"], 1),
                "selected": summary["selected"],
            }


def _train(*words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, str(_ROOT / "train.py"), *words], cwd=_ROOT)


def _stop_on_the_way(folder: Path, *words: str) -> None:
    """Begin a run and let a signal end it once it has a checkpoint."""
    command = [sys.executable, str(_ROOT / "train.py"), *words, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, cwd=_ROOT)
    while process.poll() is None and not list((folder / "checkpoints/last").glob("*.ckpt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    if (code := process.wait()) != 143:
        raise RuntimeError(f"a run that was told to stop on its way ended with {code}")


def _differences(one: Path, other: Path) -> list[str]:
    """Names of the tensors of two runs' last checkpoints that are not equal bit for bit."""
    import torch

    left, right = (dict(_named(_last(folder), "")) for folder in (one, other))
    missing = sorted(left.keys() ^ right.keys())
    both = sorted(left.keys() & right.keys())
    return missing + [name for name in both if not torch.equal(left[name], right[name])]


def _last(folder: Path) -> Any:
    from qat.storage.checkpoint import last_good, load

    path = last_good(folder / "checkpoints" / "last")
    if path is None:
        raise RuntimeError(f"{folder} has no checkpoint")
    content = load(path)
    return {key: content[key] for key in ("state_dict", "optimizer_states")}


def _named(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(node, torch.Tensor):
        yield name, node
    elif isinstance(node, Mapping):
        for key, child in node.items():
            yield from _named(child, f"{name}.{key}")
    elif isinstance(node, (list, tuple)):
        for number, child in enumerate(node):
            yield from _named(child, f"{name}.{number}")


_OWN: dict[str, Callable[[CheckSpec], Iterator[dict[str, Any]]]] = {
    "benchmark": _benchmark,
    "trainings": _trainings,
}


if __name__ == "__main__":
    run_command(main, __doc__, needs_arguments=False)
