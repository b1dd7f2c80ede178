"""Train, export, evaluate, predict: the commands on a real run, in every form of its network."""

import json
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from qat.commands import evaluate, export, predict
from qat.commands.answers import answers
from qat.commands.formats import FORMATS
from qat.errors import QatError
from qat.export.integer.network import IntegerNetwork
from qat.export.integer.trace import network_graph
from qat.export.packed.network import load_packed
from qat.storage.checkpoint import load
from qat.train.open_run import open_trained
from support import ROOT
from support.real_run import PLAIN, kill_after, train

SMALL = [
    "trainer.max_epochs=3", "warm_start.epochs=1", "training.threads=1",
    *PLAIN,
]  # fmt: skip
NETWORKS = {"lenet5": ["model=lenet5"], "resnet20": ["model=resnet20", "quant=bcgd_w2a4"]}


@pytest.fixture(scope="module", params=["lenet5", pytest.param("resnet20", marks=pytest.mark.slow)])
def network(request):
    return request.param


@pytest.fixture(scope="module")
def run(network, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    if network == "lenet5":
        shutil.copytree(trained, folder)
    else:
        train(*NETWORKS[network], *SMALL, f"hydra.run.dir={folder}", cwd=folder.parent)
    return folder


@pytest.fixture(scope="module")
def exported(run):
    """Output of the real command for each format, by which the files now exist."""
    script = ROOT / "scripts" / "export.py"
    return {
        kind: train(f"run={run}", f"format={kind}", cwd=run.parent, script=script)
        for kind in ("packed", "onnx")
    }


def accuracies(text, part="test"):
    return [float(x) for x in re.findall(rf"^  {part} +(\d\.\d+)", text, flags=re.MULTILINE)]


def test_export_says_what_it_wrote(network, run, exported):
    size = (run / "export" / "packed.safetensors").stat().st_size
    out = exported["packed"]
    assert f"packed.safetensors: {size:,} bytes; logits bit for bit the run's" in out
    counts = re.findall(r"([\d,]+) (codes|scale|float|header)", out)
    assert sum(int(count.replace(",", "")) for count, _ in counts) == size
    promised = json.loads((run / "summary.json").read_text())["bytes"]
    assert f"the audit promised {promised:,}" in out
    for form in ("faithful", "fast"):
        size = (run / "export" / f"{form}.onnx").stat().st_size
        assert f"{form}.onnx: {size:,} bytes" in exported["onnx"]
    assert "0 of 359 predictions on test differ" in exported["onnx"].partition("fast.onnx")[0]
    assert "QLinearConv" in exported["onnx"]
    has_sums = "QLinearAdd" in exported["onnx"].partition("fast.onnx")[2]
    assert has_sums == (network == "resnet20")


@pytest.mark.slow
@pytest.mark.usefixtures("exported")
def test_latency_measures_the_files_of_a_run_and_the_report_shows_them(run):
    script = ROOT / "scripts" / "latency.py"
    out = train(f"run={run}", "rounds=2", "batch=[1,2]", "threads=1", script=script, cwd=run.parent)
    known = json.loads((run / "export" / "files.json").read_text())
    assert set(known) == {"packed.safetensors", "faithful.onnx", "fast.onnx"}
    summary = json.loads((run / "summary.json").read_text())
    page = (run / "report.html").read_text()
    for name, entry in known.items():
        assert entry["bytes"] == (run / "export" / name).stat().st_size
        assert f"{entry['bytes']:,}" in page
        if name != "fast.onnx":
            assert entry["accuracy"]["test"] == pytest.approx(summary["selected"]["test_acc"])
            assert entry["differ"]["test"] == [0, 359]
        if name.endswith(".onnx"):
            one, two = entry["latency"]
            assert (one["batch"], two["batch"]) == (1, 2)
            assert f"{name} {1e3 * one['fastest']:8.2f} ({one['fastest'] / one['float']:.3f}" in out
            assert one["processor"] in page
    assert out.splitlines()[-1].endswith("report.html: Files")


@pytest.mark.usefixtures("exported")
def test_every_form_is_evaluated_to_the_numbers_of_the_run(run, capsys):
    folder = run / "export"
    files = [folder / name for name in ("packed.safetensors", "faithful.onnx", "fast.onnx")]
    models = ",".join(str(path) for path in (run, *files))
    evaluate.main([f"model={models}", "latency=[1]", "rounds=2", "threads=1"])
    out = capsys.readouterr().out
    found = accuracies(out)
    wanted = json.loads((run / "summary.json").read_text())["selected"]["test_acc"]
    assert found[:3] == [pytest.approx(wanted, abs=5e-5)] * 3
    assert found[3] == pytest.approx(wanted, abs=0.02)
    assert re.findall(r"at export +(\d\.\d+)", out) == [f"{a:.4f}" for a in found[1:]]
    differ = [int(n) for n in re.findall(r"(\d+) of 359 predictions differ", out)]
    assert differ[:2] == [0, 0]
    assert out.count("of the first") == 4


@pytest.mark.usefixtures("exported")
def test_the_integer_engine_gives_the_same_numbers(run, capsys):
    model = f"model={run / 'export' / 'packed.safetensors'}"
    evaluate.main([model, "engine=integer", "latency=[]", "part=validation"])
    integers = capsys.readouterr().out
    evaluate.main([model, "latency=[]", "part=validation"])
    assert accuracies(integers, "validation") == accuracies(capsys.readouterr().out, "validation")
    assert "packed file, integers" in integers


@pytest.mark.usefixtures("exported")
def test_predict_names_the_classes_of_files(run, tmp_path, capsys):
    digits = load_digits()
    for index in range(8):
        pixels = (digits.images[index] / 16 * 255).round().astype("uint8")
        # in colour, which prediction has to undo
        Image.fromarray(pixels).convert("RGB").save(tmp_path / f"{index}.png")
    packed = load_packed(run / "export" / "packed.safetensors")
    data = open_trained(run).data
    raw = (torch.tensor(digits.images[:8]).float().unsqueeze(1) / 16 * 255).round() / 255
    with torch.no_grad():
        wanted = packed.net((raw - data.mean[0]) / data.std[0]).argmax(dim=1).tolist()
    for model in (run, run / "export" / "packed.safetensors", run / "export" / "faithful.onnx"):
        sheet = tmp_path.parent / "least.png"
        predict.main([str(tmp_path), f"model={model}", "top=1", f"sheet={sheet}", "least=5"])
        *lines, last = capsys.readouterr().out.splitlines()
        assert [int(line.split()[1]) for line in lines] == wanted
        assert last == f"{sheet}: the 5 least certain of 8 images"
        sheet.unlink()


@pytest.mark.slow
@pytest.mark.usefixtures("exported")
def test_training_goes_on_from_a_packed_file(network, run, tmp_path):
    packed = run / "export" / "packed.safetensors"
    folder = tmp_path / "on"
    train(
        *NETWORKS[network], f"init_from={packed}", "warm_start.epochs=0", "trainer.max_epochs=1",
        "optimizer.lr=1e-12", "training.threads=1", f"hydra.run.dir={folder}", cwd=tmp_path,
    )  # fmt: skip
    before, after = load_packed(packed).net, open_trained(folder).net
    for name, module in before.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            # a rate of nothing moves no code, and the scale by rounding only
            assert torch.allclose(module.weight, after.get_submodule(name).weight, atol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_of_the_relaxed_phase_gives_the_codes_of_its_latents(tmp_path):
    folder = tmp_path / "relaxed"
    # killed within an epoch, while the forward weights were relaxed
    kill_after(
        22, folder, "model=lenet5", "quant=binary_relax_w4a4", "warm_start.epochs=1",
        "trainer.max_epochs=9", "training.threads=1", "training.checkpoint_every=2", cwd=tmp_path,
    )  # fmt: skip
    export.main([f"run={folder}", "state=last"])
    packed = load_packed(folder / "export" / "packed.safetensors")
    content = load(max((folder / "checkpoints" / "last").glob("*.ckpt")))
    latent = content["optimizer_states"][0]["qat"]["latent"]
    assert len(latent) == len(packed.converted.weights) == 5
    for name, weight in packed.converted.weights.items():
        stored = content["state_dict"][f"net.{name}.weight"]
        assert torch.equal(stored, latent[f"{name}.weight"])
        codes, scale = weight.quantizer.encode(latent[f"{name}.weight"])
        assert torch.equal(weight.codes, codes)
        assert torch.equal(weight.scale, scale)


def test_the_run_in_integers_answers_as_the_run(run):
    from qat import convert

    trained = open_trained(run)
    trained.data.prepare()
    example = trained.data.sample_batch()[0]
    converted = convert(trained.net, trained.spec.quant)
    integers = IntegerNetwork(network_graph(trained.net, converted, example))
    with torch.no_grad():
        floats = answers(trained.net, trained.data.test_dataloader())
    exact = answers(integers, trained.data.test_dataloader())
    assert int((floats.classes != exact.classes).sum()) == 0


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (export, ["run=nowhere"], ["run=nowhere", "no run folder"]),
        (export, ["runs=x"], ["runs", "did you mean run"]),
        (export, ["run=x", "format=onx"], ["format", "packed, onnx", "onx"]),
        (export, ["run=x", "format=onnx", "trits=true"], ["trits=true", "packed"]),
        (export, ["run=x", "form=fast"], ["form", "format=onnx"]),
        (export, ["x"], ["'x'", "key=value"]),
        (evaluate, ["model=a", "latency=[1"], ["latency=[1", "cannot be read", "bracket"]),
        (predict, ["model=tests/images", "a.png"], ["tests/images is no run folder"]),
        (predict, ["model=train.py", "a.png"], ["train.py", "neither .safetensors nor .onnx"]),
        (evaluate, ["model=nowhere"], ["nowhere", "does not exist"]),
        (evaluate, ["model=README.md"], ["README.md", "scripts/export.py"]),
        (evaluate, ["latency=[0]", "model=x"], ["latency", "0"]),
        (predict, ["model=nowhere"], ["no image"]),
        (predict, ["model=nowhere", "a.png"], ["nowhere does not exist"]),
        (predict, ["a.png"], ["model", "must be given"]),
    ],
)
def test_mistakes_are_answered_in_one_line(command, arguments, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(QatError) as caught:
        command.main(arguments)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.usefixtures("exported")
def test_other_data_and_unreadable_images_are_refused(run, tmp_path, capsys):
    packed = run / "export" / "packed.safetensors"
    with pytest.raises(QatError, match="pixels a side 8, data=digits has 16"):
        evaluate.main([f"model={packed}", "data.image_size=16"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    with pytest.raises(QatError, match="1 of 1 files could not be read"):
        predict.main([str(broken), f"model={packed}"])
    assert re.search(r"broken\.png is not a readable image .*; replace or", capsys.readouterr().err)
    with pytest.raises(QatError, match="holds no image file"):
        predict.main([f"model={packed}", "top=1", str(run / ".hydra")])


@pytest.mark.usefixtures("exported")
def test_options_are_heard(run, monkeypatch, capsys):
    opened = []

    def recording(folder, *, state, **options):
        opened.append(state)
        return open_trained(folder, state=state, **options)

    monkeypatch.setattr("qat.train.open_run.open_trained", recording)
    evaluate.main([f"model={run}", "state=last", "latency=[]"])
    export.main([f"run={run}", "state=last", f"out={run.parent / 'elsewhere'}"])
    assert opened == ["last", "last"]
    assert capsys.readouterr().out.count("last epoch") == 2
    assert (run.parent / "elsewhere" / "packed.safetensors").is_file()
    with pytest.raises(QatError, match=r"engine=integer is for run folders and packed files"):
        evaluate.main([f"model={run / 'export' / 'fast.onnx'}", "engine=integer"])
    with pytest.raises(QatError, match="pixels a side 8, data=digits has 16"):
        export.main([f"run={run}", "data.image_size=16"])


@pytest.mark.usefixtures("exported")
def test_a_file_whose_logits_are_not_the_runs_is_refused(run, monkeypatch):
    def spoiled(path, **options):
        packed = load_packed(path, **options)
        with torch.no_grad():
            [*packed.net.parameters()][-1][0] += 1e-3
        return packed

    monkeypatch.setattr("qat.commands.packed_file.load_packed", spoiled)
    with pytest.raises(QatError, match="logits on validation images are not the run's"):
        export.main([f"run={run}", f"out={run.parent / 'spoiled'}"])


@pytest.mark.usefixtures("exported")
def test_a_fast_form_that_is_far_off_is_a_warning(run, monkeypatch, capsys, tmp_path):
    words = [f"run={run}", "format=onnx", "form=fast", f"out={tmp_path}"]
    monkeypatch.setattr("qat.commands.onnx_files._MANY", 1)
    export.main(words)
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setattr("qat.commands.onnx_files._MANY", -1)
    export.main(words)
    assert "warning: on validation fast.onnx answers otherwise" in capsys.readouterr().out


@pytest.mark.usefixtures("exported")
def test_images_of_16_bits_are_scaled(run, tmp_path, capsys):
    small = Image.open(ROOT / "tests" / "images" / "digit_3.png")
    small.convert("L").save(tmp_path / "a.png")
    Image.fromarray(np.asarray(small.convert("L")).astype("uint16") * 257).save(tmp_path / "b.png")
    predict.main([str(tmp_path), f"model={run / 'export' / 'packed.safetensors'}"])
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == lines[1]


def test_without_onnx_the_extra_is_named(run, monkeypatch):
    monkeypatch.setattr("qat.spec.extras.find_spec", lambda name: None)
    with pytest.raises(QatError, match=r"onnx and onnxruntime; install the extra: pip install"):
        export.main([f"run={run}", "format=onnx"])


@pytest.mark.parametrize("name", ["export", "evaluate", "predict", "latency"])
def test_help_of_the_scripts(name, monkeypatch, capsys):
    script = ROOT / "scripts" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert not stop.value.code
    out = capsys.readouterr().out
    assert f"python scripts/{name}.py" in out
    if name == "export":
        assert all(f"    {title}" in out for title in FORMATS)
