"""Who may import whom: a table of rooms, checked on the imports of every file."""

import ast
import subprocess
import sys

import pytest

from support import ROOT

FILES = sorted((ROOT / "qat").rglob("*.py"))

TORCH = {"torch"}
VISION = {"torch", "torchvision", "timm"}
IMAGES = {"torch", "torchvision", "numpy", "PIL", "sklearn", "matplotlib", "mlxtend"}

# room -> its level and the other people's packages that it may import; a room may import itself and
# rooms on lower levels. A file of a room may have a row of its own.
ROOMS = {
    "errors": (0, set()),
    "names": (0, set()),
    "spec": (1, set()),
    "storage": (2, TORCH | {"yaml", "filelock"}),  # torch inside functions: see below
    "functional": (2, TORCH),
    "ranks": (2, TORCH),
    "nn": (3, TORCH),
    "optim": (3, TORCH),
    "distill": (3, TORCH),
    "theory": (3, TORCH),
    "quantize": (4, TORCH),
    "models": (4, VISION),
    "models.hub": (4, {"huggingface_hub"}),  # timm's own way to weights
    "data": (4, IMAGES),
    "data.module": (4, IMAGES | {"lightning"}),
    "export": (5, {"torch", "onnx", "onnxruntime", "numpy", "safetensors"}),
    "report": (5, {"torch", "matplotlib", "cycler", "yaml", "scipy", "jinja2"}),
    "lit": (5, {"torch", "lightning", "torchmetrics", "typing_extensions", "numpy"}),
    "compose": (5, {"hydra", "omegaconf"}),
    "loop": (6, TORCH),
    **{
        f"loop.{name}": (6, TORCH | {"lightning"})
        for name in ("callback", "fits", "found", "inputs", "monitors")
    },
    "train": (6, VISION | {"lightning", "safetensors"}),
    "launch": (7, TORCH | {"lightning"}),
    "commands": (9, {"torch", "onnx", "torchvision", "PIL", "omegaconf", "yaml"}),
    "peers": (9, {"torch", "torchmetrics", "torchao", "brevitas", "lightning"}),
    "sweep": (8, {"optuna", "yaml"}),
    "commands.train": (9, {"hydra", "omegaconf"}),
    "": (10, {"lazy_loader"}),
}
# rooms on one level that may not know each other are all of them; these may know less still
KNOWS_ONLY = {
    "functional": {"errors", "names"},
    "theory": {"errors", "names", "functional"},
    **{r: {"errors", "names", "functional", "spec.quant"} for r in ("nn", "optim", "distill")},
}


def room_of(module):
    """Room of a dotted module name: `qat.nn.weight` -> `nn`, `qat` -> ``."""
    return module.removeprefix("qat").lstrip(".").partition(".")[0]


def row_of(module):
    """The row of a module: its own, or its room's."""
    name = module.removeprefix("qat").lstrip(".")
    return name if name in ROOMS else room_of(module)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Every imported module of a file, also inside functions; relative ones are refused."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


def allowed(importer, imported):
    """Whether the module `importer` may import the module `imported`, both dotted."""
    own, other = room_of(importer), room_of(imported)
    if own == other:
        return True
    if own in KNOWS_ONLY:
        return bool({other, imported.removeprefix("qat.")} & KNOWS_ONLY[own])
    return ROOMS[other][0] < ROOMS[own][0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_go_down_only(path):
    module = module_of(path)
    assert room_of(module) in ROOMS, f"{path}: give the new room of qat a row"
    for name in imports(path):
        top = name.partition(".")[0]
        if top == "qat":
            assert allowed(module, name), f"{module} imports {name}"
        elif top not in sys.stdlib_module_names:
            assert top in ROOMS[row_of(module)][1], f"{module} imports {name}"


def test_the_rules_can_fail():
    assert not allowed("qat.nn.weight", "qat.optim.rule")
    assert not allowed("qat.functional.ste", "qat.spec.quant")
    assert not allowed("qat.nn.weight", "qat.spec.run")
    assert not allowed("qat.lit.classifier", "qat.export.onnx.model")
    assert not allowed("qat.data.module", "qat.lit.classifier")
    assert not allowed("qat.quantize.audit", "qat.lit.classifier")
    assert not allowed("qat.train.run", "qat.commands.train")
    assert allowed("qat.lit.classifier", "qat.quantize.prepare")
    assert allowed("qat.nn.weight", "qat.spec.quant")
    assert "hydra" not in ROOMS["lit"][1]
    assert "lightning" not in ROOMS["data"][1]


def test_two_modules_stand_beside_the_rooms():
    flat = {path.name for path in (ROOT / "qat").glob("*.py")}
    assert flat == {"__init__.py", "errors.py", "names.py"}
    rooms = {room_of(module_of(path)) for path in FILES} - {"", "errors", "names"}
    assert rooms == {name for name in ROOMS if "." not in name} - {"", "errors", "names"}


def test_only_the_command_line_knows_hydra():
    users = {module_of(p) for p in FILES for n in imports(p) if n.startswith("hydra")}
    assert {room_of(user) for user in users} == {"commands", "compose"}
    assert [u for u in users if room_of(u) == "commands"] == ["qat.commands.train"]


def test_spec_and_storage_load_no_torch():
    modules = [module_of(p) for p in FILES if room_of(module_of(p)) in ("spec", "storage")]
    code = (
        f"import sys, {', '.join(modules)}; heavy = {{'torch', 'lightning', 'torchvision', 'timm', "
        "'numpy', 'scipy', 'matplotlib', 'jinja2', 'filelock', 'hydra'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
