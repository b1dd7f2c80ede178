"""What a config may call: the stranger's inputs of every door, and what must stay allowed."""

import pytest

from qat.errors import SpecError
from qat.spec.targets import ALLOWED, check_targets
from qat.train.targets import instantiated, resolved

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
NET = {"_target_": "qat.models.small.small_model", "name": "lenet5"}


def config(**changed):
    return {"model": NET, "optimizer": SGD, "callbacks": {}, "logger": {}} | changed


# names that begin as allowed ones do and reach what their module has imported
REACHING = [
    ("model", "qat.models.resnet.torch.load"),
    ("model", "qat.models.small.small_model.__globals__"),
    ("model", "torchvision.models.resnet.torch.load"),
    ("model", "torchvision.models.resnet.torch.nn.Linear"),
    ("model", "torchvision.models._api.importlib.import_module"),
    ("model", "torchvision.models.get_model"),
    ("model", "torchvision.models._api.load_state_dict_from_url"),
    ("model", "timm.models._helpers.torch.load"),
    ("model", "timm.models.load_checkpoint"),
    ("model", "timm.models.create_model"),
    ("optimizer", "torch.optim.optimizer.functools.partial"),
    ("optimizer", "torch.optim.lr_scheduler.LambdaLR"),
    ("optimizer", "torch.optim.SGD.load_state_dict"),
    ("optimizer", "timm.optim.create_optimizer_v2"),
    ("callback", "lightning.pytorch.callbacks.model_checkpoint.os.system"),
    ("callback", "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree"),
    ("callback", "lightning.pytorch.callbacks.ModelCheckpoint.__init__"),
    ("logger", "lightning.pytorch.loggers.csv_logs.os.remove"),
    ("logger", "lightning.pytorch.loggers.wandb.Namespace"),
]


@pytest.mark.parametrize(("kind", "target"), REACHING, ids=[t for _, t in REACHING])
def test_a_name_that_reaches_further_is_refused(kind, target, tmp_path):
    node = {"_target_": target, "f": str(tmp_path / "evil.pkl"), "weights_only": False}
    with pytest.raises(SpecError, match=r"may not be called|does not exist"):
        instantiated(node, kind)


@pytest.mark.parametrize(
    "name", ["qat.train.weights.torch.load", "os.system", "numpy.load", "x", 7]
)
@pytest.mark.parametrize("kind", list(ALLOWED))
def test_other_names_are_refused_before_anything_is_imported(kind, name):
    with pytest.raises(SpecError, match="may not be called"):
        instantiated({"_target_": name}, kind)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": NET | {"kwargs": {"x": {"_target_": "qat.models.small.small_model"}}}},
        {"model": NET | {"kwargs": [{"_target_": "torch.optim.SGD"}]}},
        {"optimizer": SGD | {"params": {"_target_": "torch.optim.SGD"}}},
        {"data": {"_target_": "torch.optim.SGD"}},
        {"callbacks": {"a": {"b": {"_target_": "lightning.pytorch.callbacks.Callback"}}}},
        {"callbacks": {"_target_": "lightning.pytorch.callbacks.Callback"}},
        {"_target_": "qat.models.small.small_model"},
    ],
    ids=str,
)
def test_a_target_stands_at_its_place_only(changed):
    with pytest.raises(SpecError, match="_target_"):
        check_targets(config(**changed))


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "checkpoint_path", "pretrained_cfg"])
def test_arguments_name_no_file_and_none_of_hydras_keys(key):
    for node in (NET | {key: "evil"}, NET | {"kwargs": {key: "evil"}}):
        with pytest.raises(SpecError, match=key):
            check_targets(config(model=node))


def test_arguments_are_plain_values_when_called():
    made = instantiated(SGD | {"lr": 0.25}, "optimizer")
    assert made.keywords == {"lr": 0.25}
    with pytest.raises(SpecError, match="plain values"):
        instantiated(SGD | {"x": {"_target_": "torch.load"}}, "optimizer")


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        *(("model", name) for name in ALLOWED["model"].names),
        *(("callback", name) for name in ALLOWED["callback"].names),
        ("model", "torchvision.models.resnet18"),
        ("model", "torchvision.models.resnet.ResNet"),
        ("model", "timm.models.regnetx_002"),
        ("optimizer", "torch.optim.SGD"),
        ("optimizer", "torch.optim.adamw.AdamW"),
        ("optimizer", "timm.optim.Lamb"),
        ("callback", "lightning.pytorch.callbacks.EarlyStopping"),
        ("logger", "lightning.pytorch.loggers.TensorBoardLogger"),
        ("logger", "lightning.pytorch.loggers.WandbLogger"),
    ],
)
def test_what_configs_need_stays_allowed(kind, target):
    found = resolved(target, kind)
    assert found.__name__ == target.rpartition(".")[2]


def test_a_prefix_of_the_users_own_allows_what_is_defined_there(tmp_path, monkeypatch):
    (tmp_path / "mypackage_t.py").write_text(
        "import os\nimport torch\n\n\ndef net(**shape):\n    return torch.nn.Linear(1, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "mypackage_t.net"}
    allow = ["mypackage_t."]
    assert instantiated(node, "model", allow=allow, num_classes=2).out_features == 2
    for target in ("mypackage_t.os.getcwd", "mypackage_t.torch.load", "mypackage_t.nothing"):
        with pytest.raises(SpecError, match=r"may not be called|does not exist"):
            instantiated({"_target_": target}, "model", allow=allow)
    with pytest.raises(SpecError, match=r"may not be called.*allow_targets"):
        instantiated(node, "model")
    (tmp_path / "mypackage_u.py").write_text("raise OSError('no licence')\n")
    with pytest.raises(SpecError, match=r"mypackage_u cannot be imported \(OSError: no licence\)"):
        instantiated({"_target_": "mypackage_u.net"}, "model", allow=["mypackage_u."])
