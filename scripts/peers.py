"""Other packages' methods on our data, networks, epochs and optimizer; leaves a run folder.

python scripts/peers.py method=parq_w1a32 folder=FOLDER model=resnet20 data=digits seed=1

method=parq_binary_relax_w1a32   torchao: its QuantOptimizer with the BinaryRelax map
       parq_w1a32                torchao: the same with the PARQ map
       brevitas_w1a4             Brevitas: binary weights, learned activation scale
       brevitas_w4a4             Brevitas: 4-bit weights, learned activation scale
       torch_ao_w4a4             torch.ao FakeQuantize, moving-average ranges
       float                     the control: the loop alone, which repeats train.py quant=float
folder=FOLDER                    status.json, summary.json, metrics.csv, .hydra/
                                 of several runs (seed=1,2,3) each has a folder in it
anything else                    overrides of train.py: optimizer.lr=0.05 trainer.max_epochs=40

Every conv and linear weight is quantized, first and last included, and every ReLU's output where
the method has activations. A finished folder with the same config is left as it is; an interrupted
run is started anew. Needs pip install 'qat[peers]'.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qat.commands.options import run_command
from qat.compose import combinations, composed, conf_folder, record
from qat.errors import SpecError
from qat.spec.overrides import with_quoted_paths
from qat.sweep.job import labels


def main(arguments: Sequence[str]) -> None:
    """Train the peer that the arguments name."""
    method, folder, overrides = _split(arguments)
    runs = [composed(conf_folder(), run) for run in combinations(overrides)]
    from qat.peers.methods import peer_of
    from qat.peers.run import check_supported, run_peer

    peer = peer_of(method)
    for run in runs:
        check_supported(run.spec)
    names = labels([run.overrides for run in runs]) if len(runs) > 1 else [""]
    for run, name in zip(runs, names, strict=True):
        place = folder / f"{method},{name}" if name else folder
        config = {**run.config, "peer": {"name": method, **peer.numbers}}
        # the key `peer` keeps the folder from being opened as a run of ours
        begin = partial(record, place, run.overrides, config)
        run_peer(config, run.spec, place, peer_of(method), record=begin)


def _split(arguments: Sequence[str]) -> tuple[str, Path, list[str]]:
    own = {"method": "parq_w1a32", "folder": "runs/NAME"}
    given: dict[str, str] = {}
    overrides: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            given[key] = value
        elif key.startswith(("quant", "hydra.", "resume")) or key in ("experiment", "debug"):
            raise SpecError(f"{argument} is not for peers; method=NAME says what is quantized")
        else:
            overrides.append(argument)
    for key, example in own.items():
        if not given.get(key):
            raise SpecError(f"{key} is missing; give {key}={example}; see --help")
    quoted = with_quoted_paths(overrides)
    return given["method"], Path(given["folder"]), [*quoted, "quant=float"]


if __name__ == "__main__":
    run_command(main, __doc__)
