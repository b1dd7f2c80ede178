"""Bad commands: one line that names key and value, exit code 2, no run folder, two seconds."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qat.commands.train import main
from support import ROOT
from support.products import mostly_slow

# overrides -> words that the one line must hold: the key, the value, something that is allowed
BAD = {
    "foo=1": ["foo", "quant", "seed"],
    "lr=0.1": ["lr is not an option", "did you mean optimizer.lr"],
    "+foo=1": ["foo", "quant", "seed"],
    "quant.bits=3": ["quant.bits", "weight"],
    "+quant.bits=3": ["quant.bits", "weight"],
    "+quant.weight.bit=3": ["quant.weight.bit", "did you mean quant.weight.bits"],
    "quant.weight.bits=0": ["quant.weight.bits", "got 0", "1, 2, 3", "quant=float"],
    "quant.weight.bits=-1": ["quant.weight.bits", "got -1"],
    "quant.weight.bits=1.5": ["quant.weight.bits", "got 1.5"],
    "quant.weight.bits=33": ["quant.weight.bits", "got 33"],
    "quant.weight.bits=abc": ["quant.weight.bits", "'abc'"],
    "quant.weight.bits=": ["quant.weight.bits", "''"],
    "quant.weight.bits=true": ["quant.weight.bits", "True"],
    "quant.activation.bits=9": ["quant.activation.bits", "got 9"],
    "quant.activation.derivative=tanhh": ["derivative", "tanhh", "clipped_relu"],
    "quant.activation.step_rate=-1": ["step_rate", ">= 0", "-1"],
    "quant.weight.grid=ternary": ["quant.weight.grid=ternary", "bits in 2", "got 1"],
    "quant.weight.grid=cubic": ["quant.weight.grid", "cubic", "power_of_two"],
    "quant.weight.method=lsqq": ["quant.weight.method", "lsqq", "dorefa"],
    "quant.weight.method=lsq": ["method=lsq", "bits in 2", "got 1"],
    "quant.weight.method=reste": ["quant.rule.name=bcgd", "method=reste", "float_only"],
    "quant=lsq_w4a4 quant.weight.grid=uniform": ["grid=uniform", "method=update", "null"],
    "quant=dorefa_w1a4 quant.weight.granularity=channel": ["granularity=channel", "dorefa"],
    "quant.weight.derivative=tanh": ["quant.weight.derivative=tanh", "lsq"],
    "quant=reste_w1a1 quant.weight.derivative=tahn": ["quant.weight.derivative", "tahn", "power"],
    "quant.activation.kind=sign": ["kind=sign", "bits=4", "bits=1"],
    "quant.activation.kind=tern": ["quant.activation.kind", "tern", "staircase"],
    "quant.activation.shift=channel": ["shift=channel", "kind=sign"],
    "quant=bcgd_w1a1 quant.activation.shift=pixel": ["quant.activation.shift", "pixel"],
    "quant.rule.rho=2": ["quant.rule.rho", "<= 1", "got 2"],
    "quant.rule.name=float_only": ["float_only", "quant.weight.bits=1"],
    "quant.weight.bits=32": ["quant.rule.name=bcgd", "float_only"],
    "quant=binary_relax_w1a4 quant.rule.final=0.5": ["quant.rule.final", "0.5"],
    "quant=bcgd_w3a4": ["quant=bcgd_w3a4", "bcgd_w1a4"],
    "quant.overrides=[{match:x,weight:{bit:3}}]": ["match=x", "weight.bit", "bits"],
    "quant.input_bits=1": ["quant.input_bits", "got 1", "8"],
    "model=resnet19": ["model=resnet19", "resnet18"],
    "model=timm": ["model.name", "regnetx_002"],
    "model.stem=tiny": ["model.stem", "tiny", "small"],
    "+model.depth=3": ["model.depth", "stem"],
    "data=imagnet": ["data=imagnet", "imagenet"],
    "data.batch_size=1": ["data.batch_size", ">= 2", "got 1"],
    "data.workers=many": ["data.workers", "many"],
    "data=cifar10 data.root=/nowhere": ["CIFAR-10", "/nowhere", "data.download=true"],
    "data=image_folder": ["data.root"],
    "distill=fakd": ["distill=fakd", "faqd_label_free"],
    "distill=faqd distill.teacher=/nowhere": ["distill.teacher=/nowhere", "run folder", "timm/"],
    "distill=faqd distill.temperature=3": ["distill.temperature", "logits"],
    "distill=faqd distill.features.loss=fa": ["distill.features.loss", "affinity", "'fa'"],
    "distill=faqd distill.features.weight=-1": ["distill.features.weight", ">= 0", "-1"],
    "distill=faqd distill.teacher_layers=[a]": ["distill.teacher_layers", "distill.layers"],
    "distill=faqd_label_free distill.select=accuracy": ["select=accuracy", "agreement"],
    "distill=faqd_label_free data.class_weights=balanced": ["class_weights=balanced", "none"],
    "distill=faqd_label_free training.label_smoothing=0.1": ["label_smoothing=0.1", "use 0"],
    "distill=faqd model@distill.teacher_model=resnet19": ["resnet19", "resnet18"],
    "distill=faqd unlabelled=photographs": ["unlabelled=photographs", "distill.labels=false"],
    "unlabelled=photographs": ["unlabelled=photographs", "distill=faqd_label_free"],
    "distill=faqd_label_free unlabelled=folder": ["unlabelled.folder.root", "must be given"],
    "distill=faqd_label_free unlabelled=stl10": ["unlabelled=stl10", "torchvision"],
    "distill.teacher=runs/x": ["distill=<option>", "faqd_label_free"],
    "distill=null": ["=null", "leave it out", "distill=none"],
    "experiment=faqd_resnet20_digits ~distill": ["distill.teacher_model"],
    "experiment=nope": ["experiment=nope", "bcgd_cifar10_resnet20"],
    "+experiment=nope": ["experiment"],
    "logger=mlflow": ["logger=mlflow", "wandb"],
    "optimizer.lr=abc": ["optimizer.lr", "'abc'"],
    "optimizer.lr=0": ["optimizer.lr", "> 0", "got 0"],
    "optimizer.momentum=1.5": ["optimizer.momentum", "1.5"],
    "+optimizer.beta=1": ["optimizer.beta", "momentum"],
    "optimizer._target_=torch.optim.Sgd": ["torch.optim.Sgd", "SGD"],
    "callbacks.quant_stats._target_=os.system": ["os.system", "qat.lit.", "allow_targets"],
    "+callbacks.x=3": ["callbacks.x", "got 3"],
    "allow_targets=3": ["allow_targets", "list of prefixes", "got 3"],
    "allow_targets=[5]": ["allow_targets", "got [5]"],
    "allow_targets=['']": ["allow_targets"],
    "trainer.max_epochs=0": ["trainer.max_epochs", ">= 1", "got 0"],
    "trainer.precision=8": ["trainer.precision", "bf16-mixed", "8"],
    "trainer.precision=bf16-true": ["trainer.precision", "bf16-mixed"],
    "quant.overrides=[{match:x,activation:{step_rate:0.5}}]": ["match=x", "step_rate", "0.5"],
    "quant=float quant.activation.bits=4 warm_start.epochs=24": ["warm_start.epochs=24"],
    "trainer.devices=0": ["trainer.devices", "number of processes", "auto", "0"],
    "trainer.devices=all": ["trainer.devices", "auto", "all"],
    "trainer.num_nodes=2": ["trainer.num_nodes=2", "torchrun", "docs/devices.md"],
    "trainer.devices=2 +trainer.sync_batchnorm=true training.compile=true": [
        "sync_batchnorm",
        "training.compile",
        "leave one out",
    ],
    "trainer.num_nodes=0": ["trainer.num_nodes", ">= 1"],
    "trainer.strategy=deepspeed_stage_2": ["deepspeed_stage_2", "whole tensors"],
    "trainer.strategy=model_parallel": ["model_parallel", "whole tensors"],
    "trainer.strategy=fsdp": ["trainer.strategy=fsdp", "whole tensors", "trainer.strategy=ddp"],
    "+trainer.max_epoch=3": ["trainer.max_epoch", "did you mean trainer.max_epochs"],
    "+trainer.callbacks=[]": ["trainer.callbacks"],
    "warm_start.epochs=24": ["warm_start.epochs=24", "trainer.max_epochs=24"],
    "scheduler=step scheduler.milestones=[0.7,0.4]": ["scheduler.milestones", "0.7"],
    "seed=-1": ["seed", ">= 0", "-1"],
    "seed=1.5": ["seed", "1.5"],
    "resume=/nowhere": ["resume=/nowhere", "runs/DATE/TIME"],
    "init_from=/nowhere": ["init_from=/nowhere", "does not exist"],
    "hydra.run.dir=/etc/passwd/run": ["/etc/passwd", "hydra.run.dir=FOLDER"],
    "seed": ["'seed'", "key=value"],
    "seed=1,2": ["seed=1,2", "--multirun"],
    "-m seed=1,x": ["seed", "'x'"],
    "--epochs 3": ["--epochs is no flag", "trainer.max_epochs", "key=value"],
    "--lr=3": ["--lr is no flag", "optimizer.lr"],
    "--config-dir": ["--config-dir", "expected one argument", "key=value"],
    "epochs=3 --help": ["epochs is not an option", "trainer.max_epochs"],
    "data=nothing --cfg job": ["data=nothing is unknown", "digits"],
}
# what only the machine, its packages or PyTorch can tell: for a sweep, too, before anything is made
LATER = {
    "trainer.accelerator=mps": ["trainer.accelerator=mps", "float64", "trainer.accelerator=cpu"],
    "+logger.x._target_=lightning.pytorch.loggers.LitLogger": ["logger.x=LitLogger", "litlogger"],
    "init_from=/etc": ["init_from=/etc holds no checkpoint", "sweep.keep=none"],
    "distill=faqd distill.teacher=/etc": ["distill.teacher=/etc is no run folder", "runs/DATE"],
    "model=timm model.name=regnetx_0002": ["'regnetx_0002'", "regnetx_002"],
    "model=timm model.name=resnet18.nope": ["model.name=resnet18.nope", "resnet18.a1_in1k"],
    "distill=faqd distill.teacher=timm/resnet19": ["timm/resnet19", "resnet18"],
    "distill=faqd distill.teacher=timm/resnet18.nope": ["timm/resnet18.nope", "list_pretrained"],
    "distill=faqd distill.teacher=torchvision/resnet19": ["torchvision/resnet19", "resnet18"],
    "distill=faqd model@distill.teacher_model=timm distill.teacher_model.name=x1": [
        "distill.teacher_model.name", "'x1'"
    ],
    "quant.overrides=[{match:nope*,weight:{bits:4}}]": ["match='nope*'", "layer1.0.conv1"],
    "optimizer._target_=timm.optim.Nope": ["optimizer._target_=timm.optim.Nope", "not exist"],
    "+callbacks.x._target_=lightning.pytorch.callbacks.Nope": ["callbacks.x", "Nope", "not exist"],
}  # fmt: skip


def run(command: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """The finished process and its processor time in seconds, which a busy machine leaves alone."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *command.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


# by day one of each kind, by the first key; ranges are tested without Hydra in tests/spec
KINDS = [re.split(r"[.=@]", command)[0] for command in BAD]


@pytest.mark.parametrize(
    "command", [*mostly_slow(BAD, day=[KINDS.index(kind) for kind in KINDS]), *LATER]
)
def test_one_line_names_the_key_and_nothing_is_made(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    check(command, *capsys.readouterr(), tmp_path)


# each way to an answer once as a process of its own: Hydra's, the options', the files', a sweep's
@pytest.mark.parametrize(
    "command",
    [
        "foo=1",
        "quant.weight.bits=0",
        "data=cifar10 data.root=/nowhere",
        "distill=faqd distill.teacher=/nowhere",
        "resume=/nowhere",
        "model=timm model.name=regnetx_0002",
        "seed",
        "-m seed=1,x",
    ],
)
def test_the_real_command_answers_within_two_seconds(command, tmp_path):
    done, seconds = run(command, tmp_path)
    assert done.returncode == 2, done.stderr
    check(command, done.stdout, done.stderr, tmp_path)
    assert seconds < 2


def check(command: str, out: str, err: str, folder: Path) -> None:
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for word in (BAD | LATER)[command]:
        assert word in lines[0], (word, lines[0])
    assert out == ""
    assert list(folder.iterdir()) == []


def test_torch_is_not_imported_before_the_check():
    code = (
        "import sys; from pathlib import Path; from qat.compose import conf_folder; "
        "from qat.compose import checked; checked(conf_folder(), ['debug=quick']); "
        "heavy = {'torch', 'lightning', 'torchvision', 'timm', 'wandb', 'numpy', 'scipy', "
        "'jinja2', 'filelock'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
